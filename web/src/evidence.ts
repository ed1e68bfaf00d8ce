// What the agent did and found: steps, evidence with pictures, claims.
import { el, icon } from "./dom.ts";
import { about, clock, span } from "./times.ts";

export interface Evidence {
  id: string;
  video: string; // "v1"
  start: number;
  end: number;
  kind: string;
  frames: number[];
  text: string;
  score: number | null;
}

export interface Claim {
  text: string;
  evidence: string[];
  confirmed: boolean | null;
  probability: number | null;
}

export interface Marks {
  seek(evidence: Evidence): unknown;
  known(id: string): Evidence | undefined;
  title(handle: string): string; // "" where there is one video
  picture(id: string): string;
}

const TOOLS: Record<string, string> = {
  overview: "Looks over the whole video", search_text: "Searches what is said and written", ground: "Searches where it is seen",
  watch: "Watches", look: "Looks closely at", count: "Counts", verify: "Checks", note: "Notes", finish: "Answers",
};
const CONFIDENCE: Record<string, string> = { low: "Low confidence", mid: "Medium confidence", high: "High confidence" };
const ENDS: Record<string, string> = {
  budget: "the budget is used up", stalled: "nothing new was found", repairs: "the model's calls made no sense",
};

/** A button that goes to evidence. */
export function mark(evidence: Evidence, marks: Marks): HTMLButtonElement {
  const title = marks.title(evidence.video);
  const label = `${evidence.id}: ${title && `${title}, `}${span(evidence.start, evidence.end)}`;
  return el("button", { type: "button", class: "time", "aria-label": label, title: label, on: { click: () => marks.seek(evidence) } }, clock(evidence.start));
}

function marked(ids: string[], marks: Marks): Node[] {
  return ids.flatMap((id) => {
    const found = marks.known(id);
    return found ? [mark(found, marks), document.createTextNode(" ")] : [];
  });
}

/** Arguments of a call in words: "0:02 – 0:06 · What is it?". */
function words(given: Record<string, unknown>): string {
  const out: string[] = [];
  const windows = Array.isArray(given["windows"]) ? given["windows"] : [given];
  for (const one of windows as Record<string, unknown>[]) {
    if (typeof one?.["start"] === "number" && typeof one["end"] === "number") out.push(span(one["start"], one["end"]));
  }
  if (typeof given["t"] === "number") out.push(clock(given["t"]));
  for (const name of ["query", "question", "claim", "text"]) if (typeof given[name] === "string") out.push(given[name] as string);
  if (typeof given["video"] === "string") out.push(given["video"]);
  return out.join(" · ");
}

/** One event as an item of the list of steps; null for what is shown elsewhere. */
export function step(event: any, marks: Marks): HTMLLIElement | null {
  if (event.type === "thought") return el("li", { class: "thought" }, String(event.text));
  if (event.type === "remark") return el("li", { class: "soft" }, String(event.text));
  if (event.type === "call") {
    const detail = words(event.arguments ?? {});
    return el("li", { class: "call" }, el("strong", {}, TOOLS[event.name] ?? String(event.name)), detail && ` ${detail}`);
  }
  if (event.type !== "result") return null;
  const ids = (event.evidence as Evidence[]).map((one) => one.id);
  return el("li", { class: "found" }, ids.length ? [`Found `, ...marked(ids, marks)] : "Nothing new ",
    el("details", { class: "raw" }, el("summary", {}, "What the model reads"), el("pre", {}, String(event.text).slice(0, 4000))));
}

export function claims(found: Claim[], marks: Marks): HTMLElement | null {
  if (!found.length) return null;
  return el("ul", { class: "claims", "aria-label": "Claims" }, found.map((claim) => {
    const state = claim.confirmed === true ? "confirmed" : claim.confirmed === false ? "not confirmed" : "not checked";
    const odds = typeof claim.probability === "number" ? `, ${Math.round(100 * claim.probability)} %` : "";
    return el("li", {}, claim.text.replace(/\s*\[E\d+(?:\s*,\s*E\d+)*\]/g, ""), " ", marked(claim.evidence, marks),
      el("span", { class: `badge ${claim.confirmed === true ? "good" : claim.confirmed === false ? "bad" : ""}` },
        icon(claim.confirmed === true ? "check" : claim.confirmed === false ? "close" : "doubt"), state + odds));
  }));
}

/** Evidence as pictures that go to their times. */
export function gallery(found: Evidence[], marks: Marks): HTMLElement | null {
  if (!found.length) return null;
  return el("ul", { class: "gallery", "aria-label": "Evidence" }, found.map((one) => {
    const picture = marks.picture(one.id);
    const title = marks.title(one.video);
    const what = one.text || (one.kind === "frames" ? `${one.frames.length} frame${one.frames.length === 1 ? "" : "s"}` : one.kind);
    return el("li", {}, el("button", { type: "button", class: "proof", on: { click: () => marks.seek(one) } },
      picture ? el("img", { src: picture, alt: "", loading: "lazy" }) : el("span", { class: "blank", "aria-hidden": "true" }),
      el("span", { class: "when" }, `${one.id} · ${title && `${title} · `}${span(one.start, one.end)}`),
      el("span", { class: "what" }, what.slice(0, 200))));
  }));
}

/** How sure the agent is, and what is missing. */
export function verdict(answer: any): HTMLElement {
  const { usage } = answer;
  const cost = usage?.rounds && `${usage.rounds} round${usage.rounds === 1 ? "" : "s"}, ${usage.frames ?? 0} frames, ${about(usage.seconds ?? 0)}`;
  const said = [CONFIDENCE[answer.confidence], ENDS[answer.finish_reason], answer.missing && `Missing: ${answer.missing}`, cost];
  return el("p", { class: "small soft" }, said.filter(Boolean).join(" · "));
}
