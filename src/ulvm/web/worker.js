// Beside the page, so that it stays responsive: file or frame → 256×256 → probability.

import { SIZE } from "./model.js";
import { resizeRgb } from "./resample.js";

const RUNTIME = new URL("runtime/", import.meta.url);
const BAND_PIXELS = 2 ** 20;

let session;
let Tensor;
let canvas = new OffscreenCanvas(1, 1);
let context;

const requests = { load, segment };

self.addEventListener("message", async ({ data: { id, kind, ...rest } }) => {
  try {
    const [result, transfer = []] = await requests[kind](rest);
    self.postMessage({ id, result }, transfer);
  } catch (error) {
    self.postMessage({ id, error: error?.message ?? String(error) });
  }
});

async function load() {
  const loaded = [0, 0];
  const totals = [0, 0];
  const [wasmBinary, model] = await Promise.all(
    [new URL("ort-wasm-simd-threaded.wasm", RUNTIME), new URL("model.onnx", import.meta.url)].map((url, i) =>
      download(url, (bytes, total) => {
        loaded[i] = bytes;
        totals[i] = total;
        const known = totals.every((each) => each > 0);
        self.postMessage({ progress: { loaded: sum(loaded), total: known ? sum(totals) : null } });
      }),
    ),
  );
  const ort = await import(new URL("ort.wasm.min.mjs", RUNTIME));
  Tensor = ort.Tensor;
  ort.env.wasm.wasmBinary = wasmBinary;
  ort.env.wasm.wasmPaths = { mjs: new URL("ort-wasm-simd-threaded.mjs", RUNTIME).href };
  // Threads need SharedArrayBuffer, which browsers give to isolated pages only. Half of the
  // cores, for they are often two to one real core, and the page needs some too.
  ort.env.wasm.numThreads = self.crossOriginIsolated
    ? Math.max(1, Math.min(4, Math.floor(navigator.hardwareConcurrency / 2)))
    : 1;
  session = await ort.InferenceSession.create(new Uint8Array(model), {
    executionProviders: ["wasm"],
    graphOptimizationLevel: "disabled", // the graph is lean; rewriting it takes longer
    logSeverityLevel: 3,
  });
  await infer(new Uint8Array(SIZE * SIZE * 3)); // the first run also compiles
  const times = [];
  for (let i = 0; i < 5; i++) {
    const began = performance.now();
    await infer(new Uint8Array(SIZE * SIZE * 3));
    times.push(performance.now() - began);
  }
  const inferMs = times.sort((a, b) => a - b)[2];
  const bytes = wasmBinary.byteLength + model.byteLength;
  return [{ threads: ort.env.wasm.numThreads, bytes, inferMs }];
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

async function download(url, report) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname} is missing (${response.status})`);
  // Compressed transfers announce another length than what arrives; then there is no total.
  const total = response.headers.has("Content-Encoding") ? 0 : Number(response.headers.get("Content-Length"));
  const parts = [];
  let bytes = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    bytes += value.byteLength;
    report(bytes, total);
  }
  return new Blob(parts).arrayBuffer();
}

/** A picture file or a frame; with `giveBack` the decoded picture comes along, to be shown. */
async function segment({ source, giveBack }) {
  const start = performance.now();
  const bitmap = source instanceof Blob ? await decode(source) : source;
  const { height, width } = bitmap;
  const imageRgb = resizeRgb(rowReader(bitmap), height, width, SIZE);
  const prepared = performance.now();
  const probability = await infer(imageRgb);
  const inferred = performance.now();
  const result = { probability, height, width, prepareMs: prepared - start, inferMs: inferred - prepared };
  if (!giveBack) {
    bitmap.close();
    return [result, [probability.buffer]];
  }
  return [{ ...result, bitmap }, [probability.buffer, bitmap]];
}

async function decode(file) {
  try {
    // As Python does: upright, and the colours as they are in the file.
    return await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new Error(
      "is not a picture that this browser can read; accepted are JPEG, PNG, WebP, GIF and BMP; " +
        "save it as JPEG or PNG and try again",
    );
  }
}

/** Reads bands of rows, transparency on white; a whole large picture would not fit some canvases. */
function rowReader(bitmap) {
  const { height, width } = bitmap;
  const rows = Math.min(height, Math.max(1, Math.floor(BAND_PIXELS / width)));
  if (canvas.width !== width || canvas.height !== rows || !context) {
    canvas = new OffscreenCanvas(width, rows);
    context = canvas.getContext("2d", { willReadFrequently: true });
  }
  return (top, count) => {
    context.fillStyle = "white";
    context.fillRect(0, 0, width, count);
    context.drawImage(bitmap, 0, -top);
    return context.getImageData(0, 0, width, count).data;
  };
}

async function infer(imageRgb) {
  const tensor = new Tensor("uint8", imageRgb, [1, SIZE, SIZE, 3]);
  const { probability } = await session.run({ image_rgb: tensor });
  const copy = probability.data.slice(); // its memory belongs to the runtime
  probability.dispose();
  return copy; // (size, size)
}
