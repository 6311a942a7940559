import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

// onnxruntime's own copy of its wasm is left out: the page fetches ort.wasm.gz, a quarter of the size, which vendor.mjs makes.
const withoutRawWasm: Plugin = {
  name: "without-raw-wasm",
  generateBundle(_, bundle) {
    for (const name of Object.keys(bundle)) if (name.endsWith(".wasm")) delete bundle[name];
  },
};

export default defineConfig({
  base: "./", // works in any folder of any server
  plugins: [withoutRawWasm],
  build: { target: "es2022", assetsInlineLimit: 0, modulePreload: { polyfill: false } },
  test: { include: ["test/**/*.test.ts"], pool: "threads" },
});
