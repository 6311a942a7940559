// Put onnxruntime's WebAssembly where the page finds it, compressed: browsers unpack gzip themselves, on any server.
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const source = new URL("node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm", import.meta.url);
const target = new URL("public/ort.wasm.gz", import.meta.url);
if (!existsSync(target) || statSync(target).mtimeMs < statSync(source).mtimeMs) {
  mkdirSync(new URL("public/", import.meta.url), { recursive: true });
  writeFileSync(target, gzipSync(readFileSync(source), { level: 9 }));
}
