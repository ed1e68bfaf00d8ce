// The question, how it is answered, and what that will cost.
import { data, told } from "./api.ts";
import { messages, settings, unasked } from "./conversation.ts";
import { byId, el, fill, icon } from "./dom.ts";
import type { Plan } from "./progress.ts";
import type { Session, Turn } from "./store.ts";
import { about } from "./times.ts";

const MORE = 1.25; // times the frames that are planned: fewer are no choice worth showing

export interface Desk {
  session(): Session;
  turns(): Turn[];
  ready(): boolean; // all videos are on the server
  busy(): boolean; // some are on their way
  running(): boolean;
  ask(question: string, agent: boolean, thinks: boolean): void;
  stop(): void;
  choose(setting: Record<string, number>): void;
  planned(plan: Plan): void;
}

export class Composer {
  plan: Plan | null = null;
  private readonly field = el("textarea", { id: "question", rows: 2, placeholder: "Ask about the video", "aria-describedby": "plan" });
  private readonly button = el("button", { type: "submit", class: "primary square", "aria-label": "Ask" }, icon("send"));
  private readonly thinks = el("input", { type: "checkbox", id: "thinks" });
  private readonly line = el("div", { id: "plan", class: "small" });
  private wanted = ""; // the state that the plan is of
  private planning: AbortController | null = null;

  constructor(private readonly desk: Desk) {
    const radio = (value: string, text: string, checked: boolean) =>
      el("label", {}, el("input", { type: "radio", name: "way", value, checked, on: { change: () => this.draw() } }), el("span", {}, text));
    fill(byId("ask"), this.line, el("div", { class: "entry card" },
      el("label", { for: "question", class: "hidden" }, "Question"), this.field,
      el("div", { class: "row" },
        el("fieldset", { class: "ways" }, el("legend", { class: "hidden" }, "Who answers"), radio("chat", "Answer", true), radio("agent", "Agent", false)),
        el("label", { class: "think" }, this.thinks, "Think first"), this.button)));
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.desk.running()) this.submit();
    });
    this.field.addEventListener("input", () => this.size());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.desk.running() && this.desk.stop());
  }

  focus(): void {
    this.field.focus();
  }

  private get agent(): boolean {
    return byId("ask").querySelector<HTMLInputElement>("input[name=way]:checked")?.value === "agent";
  }

  private size(): void {
    this.field.rows = Math.min(8, Math.max(2, this.field.value.split("\n").length));
  }

  private submit(): void {
    if (this.desk.running()) return this.desk.stop();
    const question = this.field.value.trim();
    if (!question || !this.desk.ready()) return this.field.focus();
    this.desk.ask(question, this.agent, this.thinks.checked);
    this.field.value = "";
    this.size();
  }

  draw(): void {
    const session = this.desk.session();
    byId("ask").hidden = !session.videos.length;
    const runs = this.desk.running();
    this.button.setAttribute("aria-label", runs ? "Stop" : "Ask");
    this.button.title = runs ? "Stop (Esc)" : "Ask (Enter)";
    this.button.classList.toggle("stops", runs);
    fill(this.button, icon(runs ? "stop" : "send"));
    this.button.disabled = !runs && !this.desk.ready();
    this.thinks.parentElement!.hidden = this.agent;
    if (runs) return;
    const state = JSON.stringify([session.id, session.videos.map((video) => video.file), this.desk.turns().map((turn) => [turn.id, turn.state]), session.settings]);
    if (this.desk.ready() && state !== this.wanted) void this.ask(state);
    else this.tell();
  }

  /** Asks the server what the next question will cost. */
  private async ask(state: string): Promise<void> {
    this.wanted = state;
    this.planning?.abort();
    const { signal } = (this.planning = new AbortController());
    this.plan = null;
    this.say("Plans…");
    const session = this.desk.session();
    const json = { ...settings(session), messages: messages(session, this.desk.turns(), this.field.value || "What happens?", unasked(session, this.desk.turns())) };
    try {
      this.plan = await data<Plan>("v1/plan", { json, signal });
      this.desk.planned(this.plan);
      this.tell();
    } catch (error) {
      if ((error as Error).name !== "AbortError") this.say(told(error).message, true);
    }
  }

  private say(text: string, failed = false): void {
    fill(this.line, el("p", { class: failed ? "failed" : "soft" }, text));
  }

  private tell(): void {
    const { plan } = this;
    if (!this.desk.ready()) return this.say(this.desk.busy() ? "The plan comes with the upload's end." : "");
    if (!plan) return;
    if (!plan.fits) return fill(this.line, el("p", { class: "failed" }, `This does not fit: ${plan.problem}.`.replace("..", ".")), this.choices(plan));
    const frames = plan.videos.reduce((sum, video) => sum + video.frames, 0);
    const possible = plan.videos.reduce((sum, video) => sum + video.possible, 0);
    const interval = plan.videos.length === 1 ? plan.videos[0]!.interval : 0;
    const every = interval ? `, one every ${interval >= 1 ? interval.toFixed(1) : interval.toPrecision(2)} s` : "";
    const figure = (n: number) => n.toLocaleString("en");
    const looks = `${figure(frames)}${frames < possible ? ` of ${figure(possible)}` : ""} frames${every}`;
    const held = plan.held >= 64 ? ` (${figure(plan.held)} known already)` : "";
    const wait = plan.wait === null ? "" : `First word in about ${about(plan.wait)}`;
    const glance = plan.wait === null ? "" : ` (about ${about(plan.wait)})`;
    fill(this.line,
      el("p", {}, this.agent
        ? [el("strong", {}, "Looks again where it matters"), ` · a glance at the whole first${glance}, then up to 12 rounds`]
        : [el("strong", {}, wait || "Ready"), ` · ${looks} · ${figure(plan.prompt_tokens)} tokens${held}`]),
      !this.agent && this.choices(plan));
  }

  private choices(plan: Plan): HTMLElement | null {
    const frames = plan.videos.reduce((sum, video) => sum + video.frames, 0);
    const offered = plan.nearest.filter((setting) => !plan.fits || setting.frames >= MORE * frames);
    if (!offered.length) return null;
    return el("p", { class: "row" }, offered.slice(0, 3).map((setting) =>
      el("button", { type: "button", class: "plain", on: { click: () => this.desk.choose(setting.settings) } }, `Take ${setting.frames.toLocaleString("en")} frames`)));
  }
}
