import { defineConfig } from "vite";
import { manifest } from "./manifest.ts";

// Names without digests: the server says with each answer whether the content has changed.
export default defineConfig({
  base: "./",
  plugins: [manifest()],
  build: {
    outDir: "../src/ivlite/serve/page",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    assetsInlineLimit: 0,
    rollupOptions: {
      output: { entryFileNames: "page.js", assetFileNames: (asset) => (asset.names[0]?.endsWith(".css") ? "page.css" : "[name][extname]") },
    },
  },
});
