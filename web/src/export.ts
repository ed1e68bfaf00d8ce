// Answers as files: the server makes reports, chapters, captions and clips of what the page sends it.
import { download, save, told } from "./api.ts";
import { alarm, el, icon, say } from "./dom.ts";
import { times } from "./times.ts";

const KINDS: [string, string][] = [
  ["report", "Report (HTML)"], ["clips", "Clips"], ["chapters", "Chapters for video sites"], ["ffmetadata", "Chapters for ffmpeg"],
  ["srt", "Captions (SubRip)"], ["vtt", "Captions (WebVTT)"],
];

/** A text with times as an answer of the agent's form: each sentence with times is a claim, each time its evidence. */
export function answerOf(text: string, handle: string, last: number): any {
  const evidence: any[] = [];
  const claims: any[] = [];
  for (const sentence of text.match(/[^\n]+?(?:[.!?](?=\s|$)|(?=\n)|$)/g) ?? []) {
    const found = times(sentence, last);
    const ids = found.map(({ seconds }) => {
      const at = Math.min(seconds, last);
      const same = evidence.find((one) => one.start === at);
      if (same) return same.id as string;
      evidence.push({ id: `E${evidence.length + 1}`, video: handle, start: at, end: at, kind: "frames", frames: [at], text: sentence.trim() });
      return `E${evidence.length}`;
    });
    if (ids.length) claims.push({ text: sentence.replace(/[*`#]/g, "").trim(), evidence: ids });
  }
  return { answer: text, claims, evidence, confidence: "not checked by the agent", steps: [], usage: {} };
}

/** The menu below an answer. */
export function menu(question: string, answer: () => any, videos: () => string[]): HTMLElement {
  const list = el("div", { class: "menu-list" });
  const details = el("details", { class: "menu" }, el("summary", { class: "plain" }, icon("save"), "Export"), list);
  const close = () => {
    details.open = false;
    details.querySelector("summary")?.focus();
  };
  const button = (text: string, run: (made: HTMLButtonElement) => unknown) => {
    const made = el("button", { type: "button", class: "plain" }, text);
    made.addEventListener("click", () => run(made));
    list.append(made);
  };
  for (const [kind, text] of KINDS) {
    button(text, async (made) => {
      made.disabled = true;
      say(`${text} is being made`);
      try {
        await save("v1/exports", { kind, question, videos: videos(), answer: answer() }, `${kind}.txt`);
        say(`${text} is saved`);
        close();
      } catch (error) {
        alarm(told(error).message);
      } finally {
        made.disabled = false;
      }
    });
  }
  button("Text", () => {
    download(new Blob([`${question}\n\n${answer().answer}\n`], { type: "text/plain" }), "answer.txt");
    close();
  });
  details.addEventListener("keydown", (event) => event.key === "Escape" && details.open && (event.stopPropagation(), close()));
  details.addEventListener("focusout", (event) => !details.contains(event.relatedTarget as Node) && event.relatedTarget && (details.open = false));
  return details;
}
