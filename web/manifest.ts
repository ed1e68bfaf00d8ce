// Writes sources.json beside the built files: the SHA-256 of each source they were built from, and of each of them.
// A test compares them without node; another builds again.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const LEFT_OUT = new Set(["node_modules"]);

function files(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    if (LEFT_OUT.has(entry.name)) return [];
    const path = join(folder, entry.name);
    return entry.isDirectory() ? files(path) : [path];
  });
}

function digests(folder: string, but: string[] = []): Record<string, string> {
  const found = files(folder).map((path) => [relative(folder, path).replaceAll("\\", "/"), path] as const);
  const named = found.filter(([name]) => !but.includes(name)).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(named.map(([name, path]) => [name, createHash("sha256").update(readFileSync(path)).digest("hex")]));
}

export function manifest() {
  let out = "";
  return {
    name: "manifest",
    configResolved(config: { root: string; build: { outDir: string } }) {
      out = resolve(config.root, config.build.outDir);
    },
    closeBundle() {
      const data = { sources: digests(HERE), built: digests(out, ["sources.json"]) };
      writeFileSync(join(out, "sources.json"), JSON.stringify(data, null, 2) + "\n");
    },
  };
}
