// The player of one video. What the browser cannot play is shown as pictures that the server makes.
import { data, request } from "./api.ts";
import { el, fill, say } from "./dom.ts";
import { key } from "./key.ts";
import type { Video } from "./store.ts";
import { clock } from "./times.ts";

interface Pictures {
  data: { time: number; image: string }[];
}

/** Pictures of a video at some times, as data: URIs. */
export async function pictures(file: string, times: number[], longest = 240, signal?: AbortSignal): Promise<string[]> {
  const asked = `v1/files/${file}/frames?longest=${longest}&times=${times.map((t) => t.toFixed(3)).join(",")}`;
  return (await data<Pictures>(asked, signal ? { signal } : {})).data.map((found) => found.image);
}

const blobs = new Map<string, string>(); // what was dropped, or fetched with the key, by id of the video

/** Plays what was dropped from where it lies. */
export function dropped(video: Video, file: File): void {
  const old = blobs.get(video.id);
  if (old) URL.revokeObjectURL(old);
  blobs.set(video.id, URL.createObjectURL(file));
}

/** Forgets what was dropped: the file at its place is another one now. */
async function address(video: Video): Promise<string> {
  const held = blobs.get(video.id);
  if (held || !video.file) return held ?? "";
  if (!key()) return `v1/files/${video.file}/content`;
  const made = URL.createObjectURL(await (await request(`v1/files/${video.file}/content`)).blob());
  blobs.set(video.id, made);
  return made;
}

export class Player {
  private video: Video | null = null;
  private readonly film = el("video", { controls: true, playsinline: true, preload: "metadata" });
  private readonly still = el("img", { class: "still", hidden: true, alt: "" });
  private readonly note = el("p", { class: "soft small", hidden: true });
  private playable = true;

  constructor(private readonly place: HTMLElement, private readonly known: (video: Video, seconds: number) => void) {
    this.film.addEventListener("loadedmetadata", () => {
      if (this.video && Number.isFinite(this.film.duration)) this.known(this.video, this.film.duration);
    });
    this.film.addEventListener("error", () => this.film.getAttribute("src") && this.cannot());
  }

  get shown(): string {
    return this.video?.id ?? "";
  }

  /** Shows a video, or none. */
  async show(video: Video | null): Promise<void> {
    if (video?.id === this.video?.id && (video === null || this.film.hasAttribute("src"))) return;
    this.video = video;
    this.playable = true;
    this.film.removeAttribute("src");
    this.film.hidden = false;
    this.still.hidden = this.note.hidden = true;
    if (!video) {
      this.film.load();
      return fill(this.place);
    }
    this.film.setAttribute("aria-label", video.name);
    this.film.poster = video.picture;
    fill(this.place, this.film, this.still, this.note);
    const src = await address(video).catch(() => "");
    if (src && this.video === video) this.film.src = src;
  }

  private cannot(): void {
    this.playable = false;
    this.film.hidden = true;
    this.note.hidden = this.still.hidden = false;
    this.note.textContent = "This browser cannot play this file. Its times show pictures instead.";
    if (this.video?.picture) this.still.src = this.video.picture;
  }

  /** Goes to a time of a video. */
  async seek(video: Video, seconds: number): Promise<void> {
    if (this.video?.id !== video.id || !this.film.hasAttribute("src")) await this.show(video);
    say(`${video.name}, ${clock(seconds)}`);
    if (!this.playable && video.file) {
      const [image] = await pictures(video.file, [seconds], 960);
      if (image) this.still.src = image;
      this.still.alt = `${video.name} at ${clock(seconds)}`;
    } else if (this.film.readyState >= 1) this.film.currentTime = seconds;
    else this.film.addEventListener("loadedmetadata", () => (this.film.currentTime = seconds), { once: true });
    this.place.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
}
