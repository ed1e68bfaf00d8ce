// Asks the server one question: the answer grows in its Turn, which is kept as it grows.
import { events, Failure, told } from "./api.ts";
import { messages, settings } from "./conversation.ts";
import type { Evidence } from "./evidence.ts";
import { pictures } from "./player.ts";
import { describe, far, type Plan, type Stages } from "./progress.ts";
import { keep, TAB, type Session, type Turn } from "./store.ts";
import { about } from "./times.ts";

const KEPT = 500; // milliseconds between two writes of an answer that grows

export interface Told {
  changed(): void;
  progress(text: string, share: number | null): void;
}

export class Run {
  private readonly ended = new AbortController();
  private readonly began = Date.now();
  private written = 0;
  private pending: Promise<unknown> = Promise.resolve();

  constructor(readonly turn: Turn, private readonly session: Session, private readonly before: Turn[],
              private readonly plan: Plan | null, private readonly model: string, public told: Told) {}

  /** Ends the answer: the server hears of it at once. */
  stop(): void {
    this.ended.abort();
  }

  /** Runs to the end; never raises. goOn: what is there already is continued. */
  async run(goOn: boolean): Promise<void> {
    const { turn } = this;
    Object.assign(turn, { state: "running", error: "", tab: TAB, beat: Date.now() });
    if (!goOn) Object.assign(turn, { text: "", thinking: "", steps: [], answer: null, usage: null, pictures: {} });
    const beats = setInterval(() => void this.note(), 1000);
    try {
      await this.note();
      this.told.progress("Waits for its turn", null);
      for await (const { kind, data } of events(...this.asked(goOn))) {
        if (kind === "progress") this.stage(data.stage, data.stages);
        else if (turn.agent) this.step(data);
        else if (data) this.piece(data);
        if (Date.now() - this.written > KEPT) void this.note();
      }
      if (!turn.usage && !turn.answer) throw new Failure("The connection to the server broke off.", 0);
      turn.state = "done";
    } catch (error) {
      const failed = told(error);
      const stopped = this.ended.signal.aborted;
      turn.state = stopped ? "stopped" : "failed";
      turn.error = stopped ? "" : failed.message + (failed.again ? ` Try again in ${about(failed.again)}.` : "");
    } finally {
      clearInterval(beats);
      this.told.changed();
      await this.pending;
      await this.note();
      this.told.changed();
    }
  }

  private asked(goOn: boolean): [string, { json: unknown; signal: AbortSignal }] {
    const { turn, session } = this;
    const shared = { model: this.model, stream: true, user: TAB };
    const signal = this.ended.signal;
    if (turn.agent) {
      const videos = session.videos.map((video) => video.file);
      return ["v1/agent", { signal, json: { question: turn.question, videos, temperature: 0, ...shared, stream_options: { include_progress: true } } }];
    }
    const said = messages(session, this.before, turn.question, turn.videos);
    if (goOn) said.push({ role: "assistant", content: turn.text });
    const json = {
      ...shared, ...settings(session), messages: said, enable_thinking: turn.thinks,
      stream_options: { include_usage: true, include_progress: true }, ...(goOn ? { continue_final_message: true } : {}),
    };
    return ["v1/chat/completions", { signal, json }];
  }

  private stage(stage: string, stages: Stages): void {
    const { share, left } = far(stages, this.turn.agent ? null : this.plan, (Date.now() - this.began) / 1000);
    const text = describe(stage, stages);
    if (this.turn.agent || stage === "waiting" || stage === "generate") this.told.progress(text, null);
    else this.told.progress(left === null ? text : `${text} · about ${about(left)} left`, share);
  }

  private piece(data: any): void {
    const delta = data.choices?.[0]?.delta;
    if (delta?.reasoning_content) this.turn.thinking += delta.reasoning_content;
    if (delta?.content) this.turn.text += delta.content;
    if (data.usage) this.turn.usage = data.usage;
    if (delta?.content || delta?.reasoning_content) this.told.progress("Writes", null);
    this.told.changed();
  }

  private step(event: any): void {
    const { turn } = this;
    if (event.type === "answered") {
      const { steps: _, ...answer } = event.answer; // they are there already
      turn.answer = { ...answer, steps: turn.steps };
      turn.text = answer.answer;
    } else turn.steps.push(event);
    if (event.evidence?.length) this.pending = this.pending.then(() => this.show(event.evidence));
    this.told.changed();
  }

  /** Fetches pictures of evidence, one request after the other; without them the answer stands. */
  private async show(found: Evidence[]): Promise<void> {
    for (const handle of new Set(found.map((one) => one.video))) {
      const file = this.session.videos[Number(handle.slice(1)) - 1]?.file;
      const some = found.filter((one) => one.video === handle).slice(0, 64);
      if (!file || this.ended.signal.aborted) return;
      try {
        const images = await pictures(file, some.map((one) => one.frames[Math.floor(one.frames.length / 2)] ?? one.start), 240, this.ended.signal);
        some.forEach((one, at) => (this.turn.pictures[one.id] = images[at] ?? ""));
        this.told.changed();
      } catch {
        return;
      }
    }
  }

  private async note(): Promise<void> {
    this.written = this.turn.beat = Date.now();
    await keep(this.turn).catch(() => undefined); // the browser's disk is full: the answer is on the page all the same
  }
}
