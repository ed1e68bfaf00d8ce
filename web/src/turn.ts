// One question and its answer on the page.
import { claims, gallery, mark, step, verdict, type Evidence, type Marks } from "./evidence.ts";
import { answerOf, menu } from "./export.ts";
import { el, fill, icon } from "./dom.ts";
import { Prose } from "./text.ts";
import type { Turn, Video } from "./store.ts";

/** What a turn needs of the page around it. */
export interface Around {
  videos(): Video[]; // of the session, "v1" first
  shown(): Video | undefined; // in the player
  seek(video: Video, seconds: number): unknown;
  again(turn: Turn, goOn: boolean): unknown;
  elsewhere(turn: Turn): boolean; // whether another tab runs it
}

export class View {
  readonly place: HTMLElement;
  private readonly answer = el("div", { class: "answer", dir: "auto" });
  private readonly prose = new Prose(this.answer);
  private readonly thoughts = el("details", { class: "thoughts" });
  private readonly steps = el("ol", { class: "steps" });
  private readonly work = el("details", { class: "work", open: true }, el("summary", {}, "Steps"), this.steps);
  private readonly proof = el("div", { class: "proofs" });
  private readonly bar = el("progress", { max: 1, "aria-label": "Progress of the answer" });
  private readonly stage = el("p", { class: "stage small soft" });
  private readonly foot = el("div", { class: "foot" });
  private readonly marks: Marks;
  private drawn = 0; // steps
  private pictured = -1;

  constructor(public turn: Turn, private readonly around: Around) {
    this.marks = {
      seek: (one) => this.at(one.video) && this.around.seek(this.at(one.video) as Video, one.start),
      known: (id) => this.evidence().find((one) => one.id === id),
      title: (handle) => (this.around.videos().length > 1 ? (this.at(handle)?.name ?? handle) : ""),
      picture: (id) => this.turn.pictures[id] ?? "",
    };
    this.place = el("article", { class: "turn", "aria-label": turn.question },
      el("p", { class: "question", dir: "auto" }, turn.question),
      el("div", { class: "live" }, this.bar, this.stage), this.work, this.thoughts, this.answer, this.proof, this.foot);
    this.update();
  }

  private at(handle: string): Video | undefined {
    return this.around.videos()[Number(handle.slice(1)) - 1];
  }

  private evidence(): Evidence[] {
    return this.turn.answer?.evidence ?? this.turn.steps.flatMap((event) => event.evidence ?? []);
  }

  /** What is being done. share: null where it is not known. */
  progress(text: string, share: number | null): void {
    this.stage.textContent = text;
    if (share === null) this.bar.removeAttribute("value");
    else this.bar.value = share;
  }

  /** Shows the turn as it is now. */
  update(): void {
    const { turn } = this;
    const runs = turn.state === "running" && (this.live || this.around.elsewhere(turn));
    this.place.setAttribute("aria-busy", String(runs));
    this.place.dataset["state"] = runs ? "running" : turn.state === "running" ? "interrupted" : turn.state;
    this.place.classList.toggle("runs", runs);
    if (turn.state === "running" && !this.live && runs) this.progress("Another tab is asking this", null);
    this.work.hidden = !turn.steps.length;
    for (; this.drawn < turn.steps.length; this.drawn++) {
      const made = step(turn.steps[this.drawn], this.marks);
      if (made) this.steps.append(made);
    }
    this.thoughts.hidden = !turn.thinking;
    if (turn.thinking) fill(this.thoughts, el("summary", {}, "Thoughts"), el("p", {}, turn.thinking));
    const video = this.around.shown() ?? this.around.videos()[0];
    this.prose.show(turn.text, {
      last: video?.seconds || 24 * 3600,
      time: (seconds, written) => el("button", { type: "button", class: "time", "aria-label": `Go to ${written}`,
        on: { click: () => this.around.seek(this.around.shown() ?? this.around.videos()[0]!, seconds) } }, written),
      evidence: (id) => {
        const found = this.marks.known(id);
        return found ? mark(found, this.marks) : null;
      },
    });
    this.prove();
    this.end(runs);
  }

  live = false; // this tab runs it

  /** Evidence with its pictures: made anew only where there is something new. */
  private prove(): void {
    const { turn } = this;
    const size = Object.keys(turn.pictures).length * 1000 + this.evidence().length + (turn.answer ? 1e6 : 0);
    if (size === this.pictured || !turn.agent) return;
    this.pictured = size;
    const said = turn.answer?.claims ?? turn.steps.filter((event) => event.type === "said").map((event) => event.claim);
    fill(this.proof, claims(said, this.marks), gallery(this.evidence(), this.marks), turn.answer && verdict(turn.answer));
    if (turn.answer) this.work.open = false;
  }

  private end(runs: boolean): void {
    const { turn } = this;
    if (runs) return fill(this.foot);
    const broken = turn.state === "running";
    const why = turn.error || (broken ? "This answer was interrupted." : turn.state === "stopped" ? "Stopped." : "");
    const left = turn.state !== "done";
    const videos = this.around.videos();
    fill(this.foot,
      why && el("p", { class: turn.state === "failed" ? "failed" : "soft" }, why),
      el("div", { class: "row" },
        left && !turn.agent && !turn.thinks && turn.text && this.button("Go on", () => this.around.again(turn, true)),
        left && this.button("Ask again", () => this.around.again(turn, false)),
        turn.text && videos.length > 0 && menu(turn.question, () => this.exported(), () => videos.map((video) => video.file)),
        el("span", { class: "small soft used" }, used(turn.usage))));
  }

  private button(text: string, run: () => unknown): HTMLElement {
    return el("button", { type: "button", class: "plain", on: { click: run } }, icon("again"), text);
  }

  private exported(): any {
    if (this.turn.answer) return this.turn.answer;
    const videos = this.around.videos();
    const at = Math.max(0, videos.findIndex((video) => video.id === this.around.shown()?.id));
    return answerOf(this.turn.text, `v${at + 1}`, videos[at]?.seconds ?? 0);
  }
}

/** "1,204 tokens known already · 26 read in 0.4 s · 12 tokens/s". */
function used(usage: any): string {
  if (!usage?.prompt_tokens) return "";
  const figure = (n: number) => n.toLocaleString("en");
  const held = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const seconds: Record<string, number> = usage.ivlite?.seconds ?? {};
  const before = Object.entries(seconds).reduce((sum, [stage, value]) => (stage === "generate" ? sum : sum + value), 0);
  const pace = seconds["generate"] ? usage.completion_tokens / seconds["generate"] : 0;
  const fresh = usage.prompt_tokens - held;
  return [
    held > 0 && `${figure(held)} tokens known already`,
    `${figure(fresh)} read in ${before < 10 ? before.toFixed(1) : Math.round(before)} s`,
    pace > 0 && `${pace < 10 ? pace.toFixed(1) : Math.round(pace)} tokens/s`,
  ].filter(Boolean).join(" · ");
}
