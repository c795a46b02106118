// Beside the page, so that it stays responsive: a file or a frame becomes an outline, an outline
// becomes files. One request after the other.

import { drawLesion } from "./drawing.js";
import { SIZE, clean, infer, load as loadEngine, pictureTaken, resizeToMask, takePicture } from "./engine.js";
import { traceOutline } from "./outline.js";
import { readDeepPng } from "./png16.js";
import { assess, isOneColour, loadConstants } from "./quality.js";
import { orientationLeft, turning } from "./webp.js";

const SHOWN_PIXELS = 1600; // most for the longer side of the picture on the screen
const MASK_ROWS = 256; // of a mask, written at once

const requests = { load, outline, outlineFrame, review, measure, maskFile, overlayFile };
let last = Promise.resolve();

self.addEventListener("message", ({ data }) => (last = last.then(() => answer(data))));

async function answer({ id, kind, ...rest }) {
  try {
    const result = await requests[kind](rest, (preview) => self.postMessage({ id, preview }, [preview.bitmap]));
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: error?.message ?? String(error) });
  }
}

async function load() {
  await Promise.all([loadEngine(), loadConstants()]);
}

/** @returns {{probability: Float32Array, picture: Uint8Array, height: number, width: number, ms: number}} */
async function outline({ file }, show) {
  const bitmap = await decode(file);
  const { height, width } = bitmap;
  show({ bitmap: shrink(bitmap), height, width });
  await takePicture(height, width, rowReader(bitmap));
  bitmap.close();
  return { height, width, picture: pictureTaken(), ...timed(infer) };
}

/**
 * What a threshold makes of a result.
 *
 * @param {{picture: Uint8Array, probability: Float32Array, threshold: number}} request Of outline.
 * @returns {{cleaned: Float32Array, quality: number, warnings: string[]}} The probability without
 *   specks and holes; an estimate of Dice, 0..1; codes of quality.js.
 */
function review({ picture, probability, threshold }) {
  const cleaned = cleanOf(picture, probability, threshold);
  return { cleaned, ...assess(picture, probability, cleaned, threshold) };
}

const cleanOf = (picture, probability, threshold) =>
  isOneColour(picture) ? new Float32Array(probability.length) : clean(probability, threshold);

/** The picture at the screen's size. By a canvas: a bitmap of a bitmap may be turned once more. */
function shrink(bitmap) {
  const scale = Math.min(1, SHOWN_PIXELS / Math.max(bitmap.height, bitmap.width));
  const side = (pixels) => Math.max(1, Math.round(pixels * scale));
  const context = contextOf(side(bitmap.height), side(bitmap.width));
  context.imageSmoothingQuality = "medium";
  context.drawImage(bitmap, 0, 0, context.canvas.width, context.canvas.height);
  return context.canvas.transferToImageBitmap();
}

/**
 * A frame of the camera at once as curves.
 *
 * @param {{frame: VideoFrame | ImageBitmap, threshold: number}} request The frame is used up.
 * @returns {{curves: Float32Array[], fraction: number, ms: number}} As traceOutline; inside, 0..1.
 */
async function outlineFrame({ frame, threshold }) {
  const rect = frame.visibleRect; // of a VideoFrame
  if (rect && givesRgba(frame, rect)) {
    await takePicture(rect.height, rect.width, (rgba, top, rows) =>
      frame.copyTo(rgba, { format: "RGBA", rect: { x: rect.x, y: rect.y + top, width: rect.width, height: rows } }),
    );
  } else {
    const { height, width } = sizeOf(frame);
    await takePicture(height, width, rowReader(frame));
  }
  frame.close();
  const { probability: raw, ms } = timed(infer);
  const probability = cleanOf(pictureTaken(), raw, threshold);
  const limit = Math.fround(threshold);
  let inside = 0;
  for (let i = 0; i < probability.length; i++) inside += probability[i] >= limit;
  return { curves: traceOutline(probability, SIZE, threshold), fraction: inside / probability.length, ms };
}

/** Whether the browser writes an upright frame's pixels into memory, which is quicker than a canvas. */
function givesRgba(frame, rect) {
  try {
    const bytes = frame.allocationSize({ format: "RGBA", rect });
    return bytes === rect.height * rect.width * 4 && !frame.rotation && !frame.flip;
  } catch {
    return false; // it can't convert
  }
}

function timed(run) {
  const began = performance.now();
  const probability = run();
  return { probability, ms: performance.now() - began };
}

/** The mask's share of the picture, 0..1, at the picture's size. */
function measure({ result, threshold }) {
  return resizeToMask(result, threshold, false).area / (result.height * result.width);
}

/** A PNG of the mask at the picture's size: 0 and 255. */
function maskFile({ result, threshold }) {
  const { height, width } = result;
  const context = contextOf(height, width);
  const { mask } = resizeToMask(result, threshold, true);
  const image = context.createImageData(width, Math.min(height, MASK_ROWS));
  const pixels = new Uint32Array(image.data.buffer);
  // Alpha is the last byte, and all others are equal, so that the byte order only moves alpha.
  const [black, white] = new Uint32Array(new Uint8Array([0, 0, 0, 255, 255, 255, 255, 255]).buffer);
  for (let top = 0; top < height; top += MASK_ROWS) {
    const part = mask.subarray(top * width, (top + MASK_ROWS) * width);
    for (let i = 0; i < part.length; i++) pixels[i] = part[i] ? white : black;
    context.putImageData(image, 0, top);
  }
  return context.canvas.convertToBlob({ type: "image/png" });
}

/** A PNG of the picture at its size, outlined and tinted. */
async function overlayFile({ file, result, threshold, opacity }) {
  const bitmap = await decode(file);
  const context = contextOf(result.height, result.width);
  context.fillStyle = "white";
  context.fillRect(0, 0, result.width, result.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  drawLesion(context, traceOutline(result.probability, SIZE, threshold), opacity);
  return context.canvas.convertToBlob({ type: "image/png" });
}

/** As Python does: upright, and the colours as they are in the file. */
async function decode(file) {
  const bitmap = await read(file);
  const orientation = await orientationLeft(file);
  if (orientation === 1) return bitmap;
  const { height, width } = bitmap;
  const context = orientation > 4 ? contextOf(width, height) : contextOf(height, width);
  context.setTransform(...turning(orientation, width, height));
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.canvas.transferToImageBitmap();
}

async function read(file) {
  try {
    const deep = await readDeepPng(file);
    return await createImageBitmap(deep ?? file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new Error(
      /\.hei[cf]$/i.test(file.name) || /hei[cf]/.test(file.type)
        ? "is a HEIC photo, which this browser cannot read. Save it as JPEG and try again"
        : "is not a picture that this browser can read. Save it as JPEG, PNG or WebP and try again",
    );
  }
}

const sizeOf = (source) => ({
  height: source.displayHeight ?? source.height,
  width: source.displayWidth ?? source.width,
});

/** Reads bands of rows, transparency on white; a whole large picture would not fit some canvases. */
function rowReader(source) {
  let context;
  return (rgba, top, rows) => {
    const { height, width } = sizeOf(source);
    context ??= contextOf(rows, width, { willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, rows);
    context.drawImage(source, 0, -top, width, height);
    rgba.set(context.getImageData(0, 0, width, rows).data);
  };
}

function contextOf(height, width, options) {
  const context = new OffscreenCanvas(width, height).getContext("2d", options);
  // Of a canvas that is too large for them some browsers give a context that draws nothing.
  context?.fillRect(0, 0, 1, 1);
  if (!context?.getImageData(0, 0, 1, 1).data[3]) {
    throw new Error(`needs a canvas of ${width} × ${height} pixels, too large for this browser. Scale it down`);
  }
  context.clearRect(0, 0, 1, 1);
  return context;
}
