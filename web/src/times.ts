// Times as people write them, and times within a text.

/** "0:12", "1:02:03"; with a tenth where there is one. */
export function clock(seconds: number): string {
  const tenths = Math.max(0, Math.round(seconds * 10));
  const whole = Math.floor(tenths / 10);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n: number) => String(n).padStart(2, "0");
  const start = hours ? `${hours}:${two(minutes)}` : `${minutes}`;
  return `${start}:${two(rest)}${tenths % 10 ? `.${tenths % 10}` : ""}`;
}

export function span(start: number, end: number): string {
  return end - start < 0.05 ? clock(start) : `${clock(start)} – ${clock(end)}`;
}

/** How long something takes: "8 s", "2 min", "1 h 20 min". */
export function about(seconds: number): string {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function bytes(count: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; count >= 1000 && unit < units.length - 1; unit++) count /= 1000;
  return `${unit && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

export interface Found {
  at: number; // where in the text
  length: number;
  seconds: number;
}

const SECONDS = String.raw`(\d{1,6}(?:\.\d{1,3})?)`;
const CLOCK = String.raw`(?:(\d{1,2}):)?(\d{1,2}):([0-5]\d(?:\.\d{1,3})?)`;
const BETWEEN = String.raw`(?:\s*(?:-|–|—|to|and|until)\s*)`;
const UNIT = String.raw`[\s-]?(?:s|secs?|seconds?)(?![\w])`;
const TIMES = new RegExp(String.raw`(?<![\w.:])(?:${CLOCK}(?![\w:])|${SECONDS}(?:${UNIT})?${BETWEEN}${SECONDS}${UNIT}|${SECONDS}${UNIT})`, "gi");

/** The times of a text up to `last` seconds: 1:02, 12.5 s, "from 2 to 4 seconds". */
export function times(text: string, last: number): Found[] {
  const found: Found[] = [];
  const add = (at: number, written: string, seconds: number) => {
    if (seconds <= last + 0.5) found.push({ at, length: written.length, seconds });
  };
  for (const match of text.matchAll(TIMES)) {
    const [whole, hours, minutes, rest, from, to, only] = match;
    if (minutes !== undefined && rest !== undefined) add(match.index, whole, Number(hours ?? 0) * 3600 + Number(minutes) * 60 + Number(rest));
    else if (from !== undefined && to !== undefined) {
      add(match.index, from, Number(from));
      const at = whole.lastIndexOf(to);
      add(match.index + at, whole.slice(at), Number(to));
    } else add(match.index, whole, Number(only));
  }
  return found;
}
