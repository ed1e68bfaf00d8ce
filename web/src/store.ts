// Sessions, kept in this browser: each session and each turn is a record of its own, so tabs do not overwrite each other's.

export interface Video {
  id: string; // of this browser
  name: string;
  size: number;
  modified: number;
  file: string; // the server's id; "" until it is uploaded
  upload: string; // of an upload that was begun
  picture: string; // a data: URI
  seconds: number; // 0 until it is known
}

export interface Session {
  id: string;
  title: string;
  created: number;
  changed: number;
  videos: Video[];
  settings: Record<string, number>; // of the plan that was chosen
}

export type State = "running" | "done" | "stopped" | "failed";

export interface Turn {
  id: string;
  session: string;
  at: number;
  question: string;
  agent: boolean;
  thinks: boolean;
  videos: string[]; // ids of those that are new with it
  state: State;
  text: string;
  thinking: string;
  error: string;
  usage: any;
  steps: any[]; // events of the agent
  answer: any; // of the agent
  pictures: Record<string, string>; // of evidence, by id
  tab: string; // that runs it
  beat: number; // when it was last alive
}

const STORES = ["sessions", "turns"] as const;
type Name = (typeof STORES)[number];

let base: IDBDatabase | null = null;
const memory = { sessions: new Map<string, Session>(), turns: new Map<string, Turn>() };
const channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("ivlite");

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((done, failed) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });
}

/** Opens what is kept; false where this browser keeps nothing. */
export async function open(): Promise<boolean> {
  try {
    const request = indexedDB.open("ivlite", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("sessions", { keyPath: "id" });
      request.result.createObjectStore("turns", { keyPath: "id" }).createIndex("session", "session");
    };
    base = await result(request);
    base.onversionchange = () => base?.close();
    return true;
  } catch {
    return false;
  }
}

export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** This tab, also after a reload. One that was copied while the first still shows the page is another. */
export const TAB = (sessionStorage.getItem("ivlite-left") && sessionStorage.getItem("ivlite-tab")) || newId();
sessionStorage.setItem("ivlite-tab", TAB);
sessionStorage.removeItem("ivlite-left");
addEventListener("pagehide", () => sessionStorage.setItem("ivlite-left", "1"));
addEventListener("pageshow", () => sessionStorage.removeItem("ivlite-left"));

async function within<T>(mode: IDBTransactionMode, work: (stores: Record<Name, IDBObjectStore>) => Promise<T>): Promise<T> {
  const transaction = (base as IDBDatabase).transaction([...STORES], mode);
  const found = await work({ sessions: transaction.objectStore("sessions"), turns: transaction.objectStore("turns") });
  return found;
}

export async function sessions(): Promise<Session[]> {
  const all = base ? await within("readonly", ({ sessions }) => result<Session[]>(sessions.getAll())) : [...memory.sessions.values()];
  return all.sort((a, b) => b.changed - a.changed);
}

export async function session(id: string): Promise<Session | undefined> {
  return base ? within("readonly", ({ sessions }) => result<Session | undefined>(sessions.get(id))) : memory.sessions.get(id);
}

/** Changes a session as it is kept now: another tab may have changed it since it was read. */
export async function change(id: string, by: (session: Session) => void): Promise<Session> {
  const fresh = (): Session => ({ id, title: "", created: Date.now(), changed: 0, videos: [], settings: {} });
  const changed = (found: Session | undefined) => {
    const now = found ?? fresh();
    by(now);
    now.changed = Date.now();
    return now;
  };
  let now: Session;
  if (base) {
    now = await within("readwrite", async ({ sessions }) => {
      const made = changed(await result<Session | undefined>(sessions.get(id)));
      await result(sessions.put(made));
      return made;
    });
  } else memory.sessions.set(id, (now = changed(memory.sessions.get(id))));
  channel?.postMessage({ session: id });
  return now;
}

export async function turns(id: string): Promise<Turn[]> {
  const all = base
    ? await within("readonly", ({ turns }) => result<Turn[]>(turns.index("session").getAll(id)))
    : [...memory.turns.values()].filter((turn) => turn.session === id);
  return all.sort((a, b) => a.at - b.at);
}

export async function keep(turn: Turn): Promise<void> {
  if (base) await within("readwrite", ({ turns }) => result(turns.put(turn)));
  else memory.turns.set(turn.id, turn);
  channel?.postMessage({ session: turn.session, turn: turn.id });
}

export async function drop(id: string): Promise<void> {
  if (base) {
    await within("readwrite", async ({ sessions, turns }) => {
      sessions.delete(id);
      for (const key of await result(turns.index("session").getAllKeys(id))) turns.delete(key);
    });
  } else {
    memory.sessions.delete(id);
    for (const turn of [...memory.turns.values()]) if (turn.session === id) memory.turns.delete(turn.id);
  }
  channel?.postMessage({ session: id });
}

export async function dropTurn(turn: Turn): Promise<void> {
  if (base) await within("readwrite", ({ turns }) => result(turns.delete(turn.id)));
  else memory.turns.delete(turn.id);
  channel?.postMessage({ session: turn.session, turn: turn.id });
}

/** Calls a function when another tab has changed something. */
export function watch(heard: (what: { session: string; turn?: string }) => void): void {
  channel?.addEventListener("message", (event) => heard(event.data));
}
