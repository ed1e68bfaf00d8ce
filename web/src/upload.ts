// A file goes to the server in parts: a connection that breaks costs one part, a reload none that have come.
import { data, Failure, failure, GONE, headers, request } from "./api.ts";
import { askKey, key } from "./key.ts";

const PART = 8 << 20; // bytes
const TRIES = 5;

interface Upload {
  id: string;
  status: string;
  bytes: number;
  parts: { id: string; bytes: number }[];
  file: { id: string } | null;
}

/** Uploads a file and returns its id. known: the upload that was begun before. told(upload, bytes that have come). */
export async function upload(file: File, known: string, signal: AbortSignal, told: (upload: string, sent: number) => void): Promise<string> {
  let state = (known && (await found(known, file, signal))) || (await begun(file, signal));
  let failed = 0;
  while (true) {
    const sent = state.parts.reduce((sum, part) => sum + part.bytes, 0);
    told(state.id, sent);
    if (sent >= file.size) break;
    try {
      await part(`v1/uploads/${state.id}/parts`, file.slice(sent, sent + PART), signal, (more) => told(state.id, sent + more));
      failed = 0;
    } catch (error) {
      if (!(error instanceof Failure) || (error.status !== 0 && error.status !== 429) || ++failed >= TRIES) throw error;
      await pause(Math.max(error.again, 2 ** (failed - 1)), signal);
    }
    state = await data<Upload>(`v1/uploads/${state.id}`, { signal });
  }
  const parts = state.parts.map((one) => one.id);
  const done = await data<Upload>(`v1/uploads/${state.id}/complete`, { json: { part_ids: parts }, signal });
  return (done.file as { id: string }).id;
}

async function begun(file: File, signal: AbortSignal): Promise<Upload> {
  return data<Upload>("v1/uploads", { json: { bytes: file.size, filename: file.name || "video", purpose: "vision" }, signal });
}

async function found(id: string, file: File, signal: AbortSignal): Promise<Upload | null> {
  try {
    const state = await data<Upload>(`v1/uploads/${id}`, { signal });
    return state.bytes === file.size && state.status === "pending" ? state : null;
  } catch (error) {
    if (error instanceof Failure && error.status === 404) return null; // the server was started anew
    throw error;
  }
}

/** One part by XMLHttpRequest, which says how far it is. */
function part(path: string, content: Blob, signal: AbortSignal, told: (sent: number) => void): Promise<void> {
  return new Promise((done, failed) => {
    const sent = new XMLHttpRequest();
    const stop = () => sent.abort();
    signal.addEventListener("abort", stop);
    sent.open("POST", path);
    for (const [name, value] of Object.entries(headers())) sent.setRequestHeader(name, value);
    sent.upload.onprogress = (event) => told(Math.min(event.loaded, content.size));
    sent.onloadend = () => {
      signal.removeEventListener("abort", stop);
      if (signal.aborted) failed(new DOMException("stopped", "AbortError"));
      else if (sent.status === 200) done();
      else if (sent.status === 401) askKey(key() !== "").then(() => failed(new Failure(GONE, 0)));
      else failed(sent.status ? failure(sent.status, sent.responseText, sent.getResponseHeader("retry-after")) : new Failure(GONE, 0));
    };
    const form = new FormData();
    form.append("data", content, "part");
    sent.send(form);
  });
}

function pause(seconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((done, failed) => {
    const timer = setTimeout(done, 1000 * seconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      failed(new DOMException("stopped", "AbortError"));
    }, { once: true });
  });
}

/** Whether the server still has a file. */
export async function exists(file: string): Promise<boolean> {
  try {
    await request(`v1/files/${file}`);
    return true;
  } catch (error) {
    if (error instanceof Failure && error.status === 404) return false;
    throw error;
  }
}
