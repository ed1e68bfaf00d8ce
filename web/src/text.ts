// An answer as elements: paragraphs, lists, headings, code, bold; times and marks of evidence become buttons.
import { el } from "./dom.ts";
import { times } from "./times.ts";

/** What to make of times, and of ids of evidence (null: it stays text). */
export interface Links {
  last: number; // seconds of the video
  time(seconds: number, written: string): Node;
  evidence(id: string): Node | null;
}

type Kind = "p" | "ul" | "ol" | "h" | "pre";
interface Block {
  kind: Kind;
  lines: string[];
}

const ITEM = /^\s*(?:[-*•]\s+|(\d{1,3})[.)]\s+)(.*)$/;
const HEADING = /^#{1,6}\s+(.*)$/;

function blocks(text: string): Block[] {
  const out: Block[] = [];
  let open: Block | null = null;
  const next = (kind: Kind, line: string) => {
    if (open?.kind !== kind) out.push((open = { kind, lines: [] }));
    open.lines.push(line);
  };
  let code = false;
  for (const line of text.split("\n")) {
    const item = ITEM.exec(line);
    const heading = HEADING.exec(line);
    if (line.trimStart().startsWith("```")) {
      code = !code;
      open = null;
    } else if (code) next("pre", line);
    else if (!line.trim()) open = null;
    else if (heading) {
      open = null;
      next("h", heading[1] ?? "");
      open = null;
    } else if (item) next(item[1] === undefined ? "ul" : "ol", item[2] ?? "");
    else next("p", line);
  }
  return out;
}

const MARKS = /\*\*([^*\n]+)\*\*|`([^`\n]+)`|\[(E\d+(?:\s*,\s*E\d+)*)\]/g;

function inline(text: string, links: Links): Node[] {
  const out: Node[] = [];
  let at = 0;
  for (const match of text.matchAll(MARKS)) {
    const [whole, bold, code, ids] = match;
    out.push(...timed(text.slice(at, match.index), links));
    if (bold !== undefined) out.push(el("strong", {}, timed(bold, links)));
    else if (code !== undefined) out.push(el("code", {}, code));
    else {
      const known = (ids ?? "").split(",").map((id) => links.evidence(id.trim()));
      out.push(...(known.every((node) => node !== null) ? known : [document.createTextNode(whole)]));
    }
    at = match.index + whole.length;
  }
  return [...out, ...timed(text.slice(at), links)];
}

function timed(text: string, links: Links): Node[] {
  const out: Node[] = [];
  let at = 0;
  for (const found of times(text, links.last)) {
    const written = text.slice(found.at, found.at + found.length);
    out.push(document.createTextNode(text.slice(at, found.at)), links.time(found.seconds, written));
    at = found.at + found.length;
  }
  return [...out, document.createTextNode(text.slice(at))];
}

function element(block: Block, links: Links): HTMLElement {
  if (block.kind === "pre") return el("pre", {}, block.lines.join("\n"));
  if (block.kind === "h") return el("p", { class: "heading" }, inline(block.lines[0] ?? "", links));
  if (block.kind === "p") return el("p", {}, inline(block.lines.join("\n"), links));
  return el(block.kind, {}, block.lines.map((line) => el("li", {}, inline(line, links))));
}

/** A text that grows: only what has changed is made anew, so a button keeps the focus. */
export class Prose {
  private before: string[] = [];
  constructor(readonly place: HTMLElement) {}

  show(text: string, links: Links): void {
    const now = blocks(text);
    const keys = now.map((block) => JSON.stringify([block, links.last]));
    let same = 0;
    while (same < keys.length && keys[same] === this.before[same]) same++;
    while (this.place.children.length > same) this.place.lastElementChild?.remove();
    this.place.append(...now.slice(same).map((block) => element(block, links)));
    this.before = keys;
  }
}
