// The server: requests with the key, errors as one sentence, events as they come.
import { askKey, key } from "./key.ts";

/** What went wrong, in one sentence. status: of HTTP, 0 where the server does not answer. again: seconds to wait, of 429. */
export class Failure extends Error {
  constructor(message: string, readonly status: number, readonly again = 0) {
    super(message);
  }
}

export const GONE = "The server does not answer: check that “ivlite serve” is running.";

export function sentence(text: string): string {
  const trimmed = text.trim().replace(/\.$/, "");
  return trimmed ? `${trimmed[0]?.toUpperCase()}${trimmed.slice(1)}.` : "Something went wrong.";
}

/** The Failure of a response's status and body. */
export function failure(status: number, body: string, again: string | null): Failure {
  let message = "";
  try {
    message = String(JSON.parse(body).error.message);
  } catch {
    message = status === 413 ? "the file is too large for this server" : `the server answered with status ${status}`;
  }
  return new Failure(sentence(message), status, Number(again) || 0);
}

/** What any error is to a reader. */
export function told(error: unknown): Failure {
  if (error instanceof Failure) return error;
  return error instanceof TypeError ? new Failure(GONE, 0) : new Failure(sentence(String((error as Error)?.message ?? error)), -1);
}

export function headers(): Record<string, string> {
  const held = key();
  return held ? { authorization: `Bearer ${held}` } : {};
}

interface Asked {
  json?: unknown;
  method?: string;
  signal?: AbortSignal;
}

/** A response that is no error; asks for the key where one is needed. Raises Failure, AbortError. */
export async function request(path: string, { json, method, signal }: Asked = {}): Promise<Response> {
  const made: RequestInit = { method: method ?? (json === undefined ? "GET" : "POST"), headers: headers() };
  if (signal) made.signal = signal;
  if (json !== undefined) {
    made.body = JSON.stringify(json);
    made.headers = { ...headers(), "content-type": "application/json" };
  }
  let response: Response;
  try {
    response = await fetch(path, made);
  } catch (error) {
    if ((error as Error).name === "AbortError") throw error;
    throw new Failure(GONE, 0);
  }
  if (response.ok) return response;
  const body = await response.text().catch(() => "");
  if (response.status === 401) {
    await askKey(key() !== "");
    return request(path, { json, ...(method ? { method } : {}), ...(signal ? { signal } : {}) });
  }
  throw failure(response.status, body, response.headers.get("retry-after"));
}

export async function data<T>(path: string, asked: Asked = {}): Promise<T> {
  return (await request(path, asked)).json() as Promise<T>;
}

export interface Happening {
  kind: string; // "" for events without a name
  data: any;
}

/** The events of a streamed answer. Raises Failure: also for an error that is an event, and for a stream that breaks off. */
export async function* events(path: string, asked: Asked): AsyncGenerator<Happening> {
  const body = (await request(path, asked)).body;
  if (!body) throw new Failure(GONE, 0);
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop() ?? "";
      for (const part of parts) {
        const found = parsed(part);
        if (found?.data?.error) throw failure(500, JSON.stringify(found.data), null);
        if (found) yield found;
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw new Failure("The connection to the server broke off.", 0);
    throw error;
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

function parsed(part: string): Happening | null {
  let kind = "";
  let text = "";
  for (const line of part.split("\n")) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("data: ")) text += line.slice(6);
  }
  return !text ? null : text === "[DONE]" ? { kind: "done", data: null } : { kind, data: JSON.parse(text) };
}

/** Has a file saved that the server makes. */
export async function save(path: string, json: unknown, fallback: string): Promise<void> {
  const response = await request(path, { json });
  const named = /filename="([^"]+)"/.exec(response.headers.get("content-disposition") ?? "")?.[1] ?? fallback;
  download(await response.blob(), named);
}

export function download(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
