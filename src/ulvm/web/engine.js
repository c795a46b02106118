// The network and the resampling in WebAssembly, made from ulvm/engine by its build.py. One engine,
// one caller at a time.

/** Height and width of the network's input, pixels. */
export const SIZE = 256;
const BAND_PIXELS = 2 ** 20; // so that a large photo is never held whole in the module's memory
const ERROR_BYTES = 256; // ulvm_error: a code and a sentence

// Modules of one function: i8x16.popcnt asks for SIMD, i8x16.relaxed_swizzle for relaxed SIMD.
const TYPES = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10];
const SIMD = Uint8Array.of(...TYPES, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);
const RELAXED_SIMD = Uint8Array.of(...TYPES, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11);

/** @returns {string} The build for this browser. */
export function engineFile() {
  if (typeof WebAssembly !== "object") {
    throw new Error("this browser has no WebAssembly, or it is switched off. Switch it on, or take another browser");
  }
  if (!WebAssembly.validate(SIMD)) {
    throw new Error("this browser is too old: it knows no WebAssembly SIMD. Update it, or take another browser");
  }
  return WebAssembly.validate(RELAXED_SIMD) ? "engine-relaxed.wasm" : "engine.wasm";
}

let wasm; // the module's functions and its memory
let engine; // what follows are addresses there
let failure;
let image; // uint8 (SIZE, SIZE, 3)
let probability; // float32 (SIZE, SIZE)
const kept = {};

/** Fetches and opens code and weights, both at once. */
export async function load() {
  const [{ instance }, weights] = await Promise.all([
    download(engineFile()).then(instantiate),
    download("model.safetensors").then((response) => response.arrayBuffer()),
  ]);
  wasm = instance.exports;
  wasm._initialize();
  failure = reserve("failure", ERROR_BYTES);
  image = reserve("image", SIZE * SIZE * 3);
  probability = reserve("probability", SIZE * SIZE * 4);
  const file = reserve("weights", weights.byteLength);
  bytesAt(file, weights.byteLength).set(new Uint8Array(weights));
  engine = wasm.ulvm_open(file, weights.byteLength, 1, failure);
  release("weights");
  if (!engine) throw new Error(sentence());
}

async function download(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name} is missing (${response.status})`);
  return response;
}

/** While it arrives, where the host says what it is. */
const instantiate = async (response) =>
  response.headers.get("Content-Type")?.startsWith("application/wasm")
    ? WebAssembly.instantiateStreaming(response)
    : WebAssembly.instantiate(await response.arrayBuffer());

/** Memory for one purpose, kept for the next time. Views of other memory may end. */
function reserve(purpose, bytes) {
  if (kept[purpose]?.bytes >= bytes) return kept[purpose].at;
  release(purpose);
  const at = wasm.malloc(bytes);
  if (!at) throw new Error("needs more memory than the browser gives. Close other pages, or take a smaller picture");
  kept[purpose] = { at, bytes };
  return at;
}

function release(purpose) {
  wasm.free(kept[purpose]?.at ?? 0);
  delete kept[purpose];
}

const bytesAt = (at, bytes) => new Uint8Array(wasm.memory.buffer, at, bytes);

function sentence() {
  const text = bytesAt(failure + 4, ERROR_BYTES - 4);
  return new TextDecoder().decode(text.slice(0, text.indexOf(0))).replace(/\.$/, "");
}

function check(code) {
  if (code) throw new Error(`was refused: ${sentence()}`);
}

/**
 * Takes a picture in, at the network's size.
 *
 * @param {number} height Of the picture, pixels.
 * @param {number} width Of the picture, pixels.
 * @param {(rgba: Uint8Array, top: number, rows: number) => void | Promise} fill Writes some rows, 0..255.
 */
export async function takePicture(height, width, fill) {
  // Frames of a video are read by pairs of rows.
  const bandRows = Math.min(height, 2 * Math.ceil(BAND_PIXELS / width / 2));
  const band = reserve("band", bandRows * width * 4);
  const narrow = reserve("narrow", height * SIZE * 3); // (height, SIZE, 3)
  for (let top = 0; top < height; top += bandRows) {
    const rows = Math.min(bandRows, height - top);
    await fill(bytesAt(band, rows * width * 4), top, rows);
    check(wasm.ulvm_resize_rows(band, rows, width, 4, SIZE, narrow + top * SIZE * 3, failure));
  }
  check(wasm.ulvm_resize_columns(narrow, height, SIZE, SIZE, image, failure));
}

/** @returns {Float32Array} Of the picture taken in: probability (SIZE, SIZE), 0..1. */
export function infer() {
  check(wasm.ulvm_run(engine, image, SIZE, SIZE, probability, failure));
  return new Float32Array(wasm.memory.buffer, probability, SIZE * SIZE).slice();
}

/** @returns {Uint8Array} The picture taken in, as the network sees it: (SIZE, SIZE, 3). */
export const pictureTaken = () => bytesAt(image, SIZE * SIZE * 3).slice();

/** @returns {Float32Array} A probability (SIZE, SIZE) whose mask by this threshold has no specks and holes. */
export function clean(values, threshold) {
  const map = () => new Float32Array(wasm.memory.buffer, probability, SIZE * SIZE);
  map().set(values);
  check(wasm.ulvm_clean_probability(probability, SIZE, SIZE, threshold, probability, failure));
  return map().slice();
}

/**
 * The mask at the picture's size: where the resized probability reaches the threshold.
 *
 * @param {{probability: Float32Array, height: number, width: number}} result (SIZE, SIZE), 0..1.
 * @param {number} threshold 0..1.
 * @param {boolean} wantsPixels Whether the mask is wanted, not its area alone.
 * @returns {{area: number, mask?: Uint8Array}} Pixels; 0 and 1, (height, width), until the next call.
 */
export function resizeToMask(result, threshold, wantsPixels) {
  const { height, width } = result;
  const mask = wantsPixels ? reserve("mask", height * width) : 0;
  const area = reserve("area", 8);
  new Float32Array(wasm.memory.buffer, probability, SIZE * SIZE).set(result.probability);
  check(wasm.ulvm_resize_probability(probability, SIZE, SIZE, height, width, threshold, 0, mask, area, failure));
  const pixels = Number(new BigInt64Array(wasm.memory.buffer, area, 1)[0]);
  return { area: pixels, mask: wantsPixels ? bytesAt(mask, height * width) : undefined };
}
