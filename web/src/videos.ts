// The videos of a session: dropped or chosen, uploaded, shown as cards.
import { Failure, told } from "./api.ts";
import { alarm, byId, el, fill, icon, say } from "./dom.ts";
import { dropped, pictures } from "./player.ts";
import { change, newId, type Session, type Video } from "./store.ts";
import { bytes, clock } from "./times.ts";
import { exists, upload } from "./upload.ts";

interface Sending {
  share: number;
  end: AbortController;
}

export interface Room {
  session(): Session;
  changed(session: Session): void; // videos have come, gone or changed
  used(id: string): boolean; // by a turn
  play(video: Video): void;
  playing(): string;
}

export class Videos {
  private readonly sending = new Map<string, Sending>();
  private readonly wrong = new Map<string, string>(); // sentences, by id
  private readonly there = new Set<string>(); // ids of those that the server was found to have
  private readonly list = byId("videos");
  private readonly picker = el("input", { type: "file", id: "files", multiple: true, accept: "video/*,image/gif,.mkv,.avi,.ts,.m2ts,.mov,.webm", class: "hidden", tabindex: -1, "aria-hidden": "true" });

  constructor(private readonly room: Room) {
    this.picker.addEventListener("change", () => {
      this.add([...(this.picker.files ?? [])]);
      this.picker.value = "";
    });
    document.body.append(this.picker);
    this.listen();
  }

  /** Files may be dropped anywhere on the page. */
  private listen(): void {
    const files = (event: DragEvent) => event.dataTransfer?.types.includes("Files");
    let depth = 0;
    const over = (by: number) => document.body.classList.toggle("dropping", (depth = Math.max(0, depth + by)) > 0);
    addEventListener("dragenter", (event) => files(event) && (event.preventDefault(), over(1)));
    addEventListener("dragleave", (event) => files(event) && over(-1));
    addEventListener("dragover", (event) => files(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      over(-depth);
      this.add([...(event.dataTransfer?.files ?? [])]);
    });
  }

  choose(): void {
    this.picker.click();
  }

  /** Whether all of a session's videos are on the server. */
  ready(session: Session): boolean {
    return session.videos.length > 0 && session.videos.every((video) => this.there.has(video.id) && !this.wrong.has(video.id));
  }

  busy(session: Session): boolean {
    return session.videos.some((video) => this.sending.has(video.id));
  }

  /** Takes files into the session: the missing one of a video that is there, or new videos. */
  add(files: File[]): void {
    for (const file of files) {
      const session = this.room.session();
      const missing = session.videos.find((one) => !this.sending.has(one.id) && (!one.file || this.wrong.has(one.id)) && one.name === file.name && one.size === file.size);
      const video = missing ?? { id: newId(), name: file.name || "video", size: file.size, modified: file.lastModified, file: "", upload: "", picture: "", seconds: 0 };
      if (!file.size) {
        alarm(`${video.name} is empty, or a folder.`);
        continue;
      }
      if (!missing) session.videos.push(video);
      dropped(video, file);
      void this.send(session.id, video, file);
    }
  }

  private async send(id: string, video: Video, file: File): Promise<void> {
    const sending = { share: 0, end: new AbortController() };
    this.sending.set(video.id, sending);
    this.wrong.delete(video.id);
    try {
      await this.note(id, video);
      this.room.play(video);
      video.file = await upload(file, video.upload, sending.end.signal, (begun, sent) => {
        sending.share = sent / file.size;
        if (begun !== video.upload) {
          video.upload = begun;
          void this.note(id, video);
        }
        this.progress(video);
      });
      video.picture = (await pictures(video.file, [1], 320))[0] ?? ""; // a file that has none is no video
      this.sending.delete(video.id);
      this.there.add(video.id);
      await this.note(id, video);
      say(`${video.name} is uploaded`);
    } catch (error) {
      if ((error as Error).name === "AbortError") return;
      const failed = told(error);
      this.wrong.set(video.id, failed.message);
      alarm(`${video.name}: ${failed.message}`);
    } finally {
      this.sending.delete(video.id);
      if (this.room.session().id === id) this.room.changed(this.room.session());
    }
  }

  /** Writes a video as it is now into its session. */
  async note(id: string, video: Video): Promise<void> {
    const now = await change(id, (session) => {
      const at = session.videos.findIndex((one) => one.id === video.id);
      if (at < 0) session.videos.push(video);
      else session.videos[at] = video;
      session.title ||= video.name;
    });
    if (this.room.session().id === id) this.room.changed(now);
  }

  /** Finds out which files the server has: it forgets them when it ends, and other tabs bring more. */
  async check(session: Session): Promise<void> {
    for (const video of session.videos) {
      if (this.sending.has(video.id) || this.there.has(video.id)) continue;
      try {
        if (video.file !== "" && (await exists(video.file))) {
          this.wrong.delete(video.id);
          this.there.add(video.id);
        } else this.wrong.set(video.id, video.file ? "The server no longer has this file: choose it again." : "The upload was interrupted: choose the file again to go on.");
      } catch (error) {
        if (error instanceof Failure) alarm(error.message);
      }
    }
    if (this.room.session().id === session.id) this.room.changed(this.room.session());
  }

  /** The same, of files that were there: the server may have been started anew. */
  async checkAgain(session: Session): Promise<void> {
    for (const video of session.videos) this.there.delete(video.id);
    await this.check(session);
  }

  private async remove(video: Video): Promise<void> {
    this.sending.get(video.id)?.end.abort();
    this.sending.delete(video.id);
    this.wrong.delete(video.id);
    const id = this.room.session().id;
    const now = await change(id, (session) => (session.videos = session.videos.filter((one) => one.id !== video.id)));
    if (this.room.session().id === id) this.room.changed(now);
    this.list.querySelector<HTMLElement>("button")?.focus();
  }

  private progress(video: Video): void {
    const bar = this.list.querySelector<HTMLProgressElement>(`[data-id="${video.id}"] progress`);
    const share = this.sending.get(video.id)?.share ?? 0;
    if (bar) {
      bar.value = share;
      bar.textContent = `${Math.round(100 * share)} %`;
    }
  }

  draw(): void {
    const session = this.room.session();
    fill(this.list, session.videos.map((video, at) => this.card(video, at + 1, session.videos.length > 1)));
    this.list.hidden = !session.videos.length;
  }

  private card(video: Video, number: number, several: boolean): HTMLElement {
    const sending = this.sending.get(video.id);
    const wrong = this.wrong.get(video.id);
    const size = [video.seconds && clock(Math.round(video.seconds)), bytes(video.size)].filter(Boolean).join(" · ");
    return el("li", { class: `video${this.room.playing() === video.id ? " now" : ""}`, "data-id": video.id },
      el("button", { type: "button", class: "pick", "aria-pressed": String(this.room.playing() === video.id), on: { click: () => this.room.play(video) } },
        video.picture ? el("img", { src: video.picture, alt: "" }) : el("span", { class: "blank", "aria-hidden": "true" }),
        el("span", { class: "name", dir: "auto" }, el("span", { class: "hidden" }, "Show "), several && el("b", {}, `${number} `), video.name),
        !wrong && !sending && el("span", { class: "small soft" }, size)),
      sending && el("progress", { max: 1, value: sending.share, "aria-label": `Upload of ${video.name}` }),
      wrong && el("p", { class: "failed small" }, wrong),
      wrong && !/limit|large|room/.test(wrong) && el("button", { type: "button", class: "plain", on: { click: () => this.choose() } }, icon("upload"), "Choose file"),
      !this.room.used(video.id) && el("button", { type: "button", class: "plain square remove", "aria-label": `Remove ${video.name}`, on: { click: () => void this.remove(video) } }, icon("close")));
  }
}
