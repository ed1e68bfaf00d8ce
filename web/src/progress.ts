// What the server is doing, how far it is, and how long it will take: by the plan, corrected by the pace so far.

export interface Plan {
  videos: { name: string; seconds: number; possible: number; frames: number; interval: number; tokens: number; by: string }[];
  prompt_tokens: number;
  vision_tokens: number;
  max_new_tokens: number;
  peak_memory: number;
  seconds: Record<string, number> | null;
  wait: number | null;
  fits: boolean;
  problem: string;
  nearest: { flag: string; settings: Record<string, number>; frames: number }[];
  held: number;
  linear: number;
}

const WORDS: Record<string, [string, string]> = {
  waiting: ["Waits for its turn", ""],
  scan: ["Reads the file", "bytes"],
  restore: ["Takes up what is kept", "bytes"],
  store: ["Keeps what was computed", "bytes"],
  dedupe: ["Compares frames", "frames"],
  decode: ["Decodes frames", "frames"],
  vision: ["Looks at frames", "pairs"],
  prefill: ["Reads", "tokens"],
  generate: ["Writes", "tokens"],
};
const WORK = ["decode", "vision", "prefill"];
const TRUST = 0.2; // of the work: so much of it goes as planned before the pace so far counts as much

export type Stages = Record<string, [number, number]>;

/** "Looks at frames · 12 of 64 pairs". */
export function describe(stage: string, stages: Stages): string {
  const [words, unit] = WORDS[stage] ?? [stage, ""];
  const [done, total] = stages[stage] ?? [0, 0];
  if (!total || unit === "bytes" || stage === "generate") return total && unit === "bytes" ? `${words} · ${Math.round((100 * done) / total)} %` : words;
  return `${words} · ${done.toLocaleString("en")} of ${total.toLocaleString("en")} ${unit}`;
}

/** {share: 0 to 1 of the work before the first word, left: seconds, or null where that is not known}. */
export function far(stages: Stages, plan: Plan | null, elapsed: number): { share: number | null; left: number | null } {
  const shares = Object.fromEntries(Object.entries(stages).map(([stage, [done, total]]) => [stage, total ? done / total : 0]));
  const planned = plan?.seconds;
  const whole = planned ? WORK.reduce((sum, stage) => sum + (planned[stage] ?? 0), 0) : 0;
  if (!plan || !planned || whole <= 0) {
    const last = [...WORK].reverse().find((stage) => stage in shares);
    const share = last === undefined ? null : (shares[last] ?? 0);
    return { share, left: share && share < 1 && elapsed >= 1 ? (elapsed * (1 - share)) / share : null };
  }
  const read = shares["prefill"] ?? 0;
  if ("prefill" in shares) shares["prefill"] = read * (plan.linear + (1 - plan.linear) * read);
  const done = WORK.reduce((sum, stage) => sum + (planned[stage] ?? 0) * (shares[stage] ?? 0), 0);
  return { share: Math.min(1, done / whole), left: ((whole - done) * (elapsed + TRUST * whole)) / (done + TRUST * whole) };
}
