// The page: one session at a time, its videos, its questions and answers.
import { data, request, told } from "./api.ts";
import { Run } from "./ask.ts";
import { Composer } from "./composer.ts";
import { unasked } from "./conversation.ts";
import { alarm, byId, el, fill, icon, say } from "./dom.ts";
import { Nav } from "./nav.ts";
import { Player } from "./player.ts";
import * as store from "./store.ts";
import type { Session, Turn, Video } from "./store.ts";
import { View } from "./turn.ts";
import { Videos } from "./videos.ts";

const ALIVE = 6000; // milliseconds without a word of the tab that asks, after which its answer counts as interrupted

class Page {
  private session: Session = blank();
  private turns: Turn[] = [];
  private model = "";
  private readonly views = new Map<string, View>();
  private readonly runs = new Map<string, Run>(); // of this tab, by id of the turn
  private readonly player: Player;
  private readonly videos: Videos;
  private readonly composer: Composer;
  private readonly nav: Nav;

  constructor() {
    this.player = new Player(byId("player"), (video, seconds) => this.lasts(video, seconds));
    this.videos = new Videos({
      session: () => this.session, changed: (session) => this.changed(session), play: (video) => this.play(video),
      used: (id) => this.turns.some((turn) => turn.videos.includes(id)), playing: () => this.player.shown,
    });
    this.composer = new Composer({
      session: () => this.session, turns: () => this.turns, ready: () => this.videos.ready(this.session),
      busy: () => this.videos.busy(this.session), running: () => this.running() !== undefined,
      ask: (question, agent, thinks) => void this.ask(question, agent, thinks), stop: () => this.running()?.stop(),
      choose: (setting) => void this.choose(setting), planned: (plan) => this.planned(plan),
    });
    this.nav = new Nav(() => this.session.id, (session) => void this.gone(session));
    byId("fresh").addEventListener("click", () => this.fresh());
    addEventListener("hashchange", () => void this.open());
    store.watch((what) => this.heard(what.session));
    setInterval(() => this.lapse(), 2000);
  }

  async start(): Promise<void> {
    if (!(await store.open())) byId("keeps").textContent = "This browser keeps no sessions: they end with the page.";
    await this.open();
    try {
      const found = await data<{ data: { id: string }[] }>("v1/models");
      this.model = found.data[0]?.id ?? "";
      byId("model").textContent = this.model;
      document.title = `${this.model} · ivlite`;
    } catch (error) {
      alarm(told(error).message);
    }
    await this.videos.check(this.session);
  }

  // ------------------------------------------------------------------------------------------------ the session

  private opening = 0; // how many times an address was opened

  /** Shows the session that the address names. */
  private async open(): Promise<void> {
    const id = /^#s=([0-9a-f]{18})$/.exec(location.hash)?.[1];
    if (id === this.session.id && this.views.size) return;
    const mine = ++this.opening;
    const session = (id && (await store.session(id))) || blank();
    const turns = id ? await store.turns(id) : [];
    if (mine !== this.opening) return; // the address has changed meanwhile
    if (location.hash && session.id !== id) history.replaceState(null, "", location.pathname); // it names none
    this.session = session;
    this.turns = turns.map((turn) => this.runs.get(turn.id)?.turn ?? turn);
    this.views.clear();
    byId("turns").replaceChildren();
    this.composer.plan = null;
    await this.player.show(this.session.videos[0] ?? null);
    this.draw();
    void this.videos.check(this.session);
  }

  private fresh(): void {
    history.pushState(null, "", location.pathname);
    void this.open().then(() => byId("drop").querySelector<HTMLElement>("button")?.focus());
  }

  private async gone(session: Session): Promise<void> {
    for (const run of this.runs.values()) if (run.turn.session === session.id) run.stop();
    for (const video of session.videos) if (video.file) void request(`v1/files/${video.file}`, { method: "DELETE" }).catch(() => undefined);
    if (session.id === this.session.id) this.fresh();
    await this.nav.draw();
    byId("fresh").focus();
  }

  /** What is known of a session has changed; of one that is not shown any more it is kept already. */
  private changed(session: Session): void {
    if (session.id !== this.session.id) return;
    this.session = session;
    // a new session gets its address; one that another address was just asked for does not take it back
    if (!location.hash && session.changed) history.replaceState(null, "", `#s=${session.id}`);
    if (this.player.shown && !session.videos.some((video) => video.id === this.player.shown)) void this.player.show(session.videos[0] ?? null);
    this.draw();
  }

  /** Another tab has changed a session: what is shown of it is read again. */
  private reading = 0;
  private heard(id: string): void {
    clearTimeout(this.reading);
    this.reading = window.setTimeout(async () => {
      await this.nav.draw();
      if (id !== this.session.id) return;
      const [session, turns] = [await store.session(id), await store.turns(id)];
      if (id !== this.session.id) return;
      if (!session) return this.fresh();
      if (!this.videos.busy(session)) this.session = session;
      this.turns = turns.map((turn) => this.runs.get(turn.id)?.turn ?? turn);
      this.draw();
      await this.videos.check(this.session);
    }, 200);
  }

  private draw(): void {
    const some = this.session.videos.length > 0;
    document.body.classList.toggle("empty", !some);
    this.videos.draw();
    const choose = () => this.videos.choose();
    if (!some && !byId("drop").querySelector(".hero")) {
      fill(byId("drop"), el("div", { class: "hero" }, icon("upload"),
        el("h2", {}, "Drop a video here"), el("p", { class: "soft" }, "It stays between this browser and the server that you started."),
        el("button", { type: "button", class: "primary", on: { click: choose } }, "Choose a video")));
    } else if (some) fill(byId("drop"), el("button", { type: "button", class: "plain", on: { click: choose } }, icon("plus"), "Add a video"));
    this.drawTurns();
    this.composer.draw();
    void this.nav.draw();
  }

  private drawTurns(): void {
    const place = byId("turns");
    for (const [id, view] of this.views) {
      if (!this.turns.some((turn) => turn.id === id)) {
        view.place.remove();
        this.views.delete(id);
      }
    }
    for (const turn of this.turns) {
      const view = this.views.get(turn.id) ?? new View(turn, this.around());
      view.turn = turn;
      view.live = this.runs.has(turn.id);
      if (!view.place.isConnected) place.append(view.place);
      this.views.set(turn.id, view);
      view.update();
    }
    place.hidden = !this.turns.length;
  }

  /** An answer of another tab that says nothing any more was interrupted. */
  private lapse(): void {
    if (this.turns.some((turn) => turn.state === "running" && !this.runs.has(turn.id))) this.drawTurns();
  }

  // ------------------------------------------------------------------------------------------------ videos

  private play(video: Video): void {
    void this.player.show(video).then(() => this.draw());
  }

  private lasts(video: Video, seconds: number): void {
    if (Math.abs(video.seconds - seconds) < 0.01) return;
    video.seconds = seconds;
    void this.videos.note(this.session.id, video);
  }

  private planned(plan: { videos: { seconds: number }[] }): void {
    this.session.videos.forEach((video, at) => {
      const seconds = plan.videos[at]?.seconds;
      if (seconds && !video.seconds) this.lasts(video, seconds);
    });
  }

  private async choose(setting: Record<string, number>): Promise<void> {
    this.changed(await store.change(this.session.id, (session) => (session.settings = setting)));
  }

  // ------------------------------------------------------------------------------------------------ questions

  private running(): Run | undefined {
    return [...this.runs.values()].find((run) => run.turn.session === this.session.id);
  }

  private around() {
    return {
      videos: () => this.session.videos,
      shown: () => this.session.videos.find((video) => video.id === this.player.shown),
      seek: (video: Video, seconds: number) => this.player.seek(video, seconds).then(() => this.videos.draw()).catch((error) => alarm(told(error).message)),
      again: (turn: Turn, goOn: boolean) => void this.run(turn, goOn),
      elsewhere: (turn: Turn) => turn.tab !== store.TAB && Date.now() - turn.beat < ALIVE,
    };
  }

  private async ask(question: string, agent: boolean, thinks: boolean): Promise<void> {
    const first = !this.turns.length;
    const turn: Turn = {
      id: store.newId(), session: this.session.id, at: Date.now(), question, agent, thinks, videos: unasked(this.session, this.turns), state: "running",
      text: "", thinking: "", error: "", usage: null, steps: [], answer: null, pictures: {}, tab: store.TAB, beat: Date.now(),
    };
    this.turns.push(turn);
    await this.run(turn, false);
    if (first) await store.change(turn.session, (session) => (session.title = question.slice(0, 120)));
    await this.nav.draw();
  }

  private async run(turn: Turn, goOn: boolean): Promise<void> {
    if (this.running()) return;
    const before = this.turns.slice(0, this.turns.indexOf(turn));
    const view = () => (this.session.id === turn.session ? this.views.get(turn.id) : undefined);
    let waits = 0;
    const run = new Run(turn, this.session, before, this.composer.plan, this.model, {
      changed: () => (waits ||= requestAnimationFrame(() => ((waits = 0), view()?.update(), this.follow()))),
      progress: (text, share) => view()?.progress(text, share),
    });
    this.runs.set(turn.id, run);
    this.views.get(turn.id)?.place.remove();
    this.views.delete(turn.id);
    this.draw();
    byId("turns").scrollTop = byId("turns").scrollHeight;
    view()?.place.scrollIntoView({ block: "nearest" });
    const ended = run.run(goOn);
    await ended;
    this.runs.delete(turn.id);
    if (this.session.id !== turn.session) return;
    this.draw();
    if (turn.state === "failed") void this.videos.checkAgain(this.session);
    say(turn.state === "done" ? "The answer is complete" : turn.error || "Stopped");
    if (document.activeElement === document.body) this.composer.focus();
  }

  /** Keeps the end of an answer in sight, unless the reader has scrolled away. */
  private follow(): void {
    const place = byId("turns");
    if (place.scrollHeight - place.scrollTop - place.clientHeight < 160) place.scrollTop = place.scrollHeight;
  }
}

function blank(): Session {
  return { id: store.newId(), title: "", created: Date.now(), changed: 0, videos: [], settings: {} };
}

void new Page().start();
