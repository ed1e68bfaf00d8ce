// A session as requests: every turn again, so that the server goes on from what it has computed.
import type { Session, Turn } from "./store.ts";

interface Message {
  role: "user" | "assistant";
  content: unknown;
}

/** The messages before and with a question. Videos stand before the first question that came after them. */
export function messages(session: Session, before: Turn[], question: string, fresh: string[]): Message[] {
  const out: Message[] = [];
  const file = (id: string) => session.videos.find((video) => video.id === id)?.file;
  let waiting: string[] = [];
  const asked = (text: string, videos: string[]) => {
    const parts = [...waiting, ...videos].flatMap((id) => (file(id) ? [{ type: "video", video: file(id) }] : []));
    waiting = [];
    out.push({ role: "user", content: [...parts, { type: "text", text }] });
  };
  for (const turn of before) {
    if (turn.text && turn.state !== "failed") {
      asked(turn.question, turn.videos);
      out.push({ role: "assistant", content: turn.text });
    } else waiting.push(...turn.videos);
  }
  asked(question, fresh);
  return out;
}

/** What a chat request says beside its messages. */
export function settings(session: Session): Record<string, unknown> {
  const { budget, ...frames } = session.settings;
  return { temperature: 0, ...(budget ? { budget } : {}), ...(Object.keys(frames).length ? { mm_processor_kwargs: frames } : {}) };
}

/** Ids of the session's videos that no turn has yet. */
export function unasked(session: Session, turns: Turn[]): string[] {
  const had = new Set(turns.flatMap((turn) => turn.videos));
  return session.videos.map((video) => video.id).filter((id) => !had.has(id));
}
