// Pictures with an outline, and the files that are downloaded.

import { SIZE } from "./model.js";
import { traceOutline } from "./outline.js";
import { resizeToMask } from "./resample.js";

const COLOR = "0 230 210"; // as ulvm.image.draw_overlay

/**
 * Tint and outline over what the canvas holds.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {Float32Array} probability (256, 256), 0..1.
 * @param {{threshold: number, opacity: number}} look Both 0..1; the outline stays opaque.
 * @param {number} pixelsPerLine Canvas pixels for one of the screen, so that lines stay visible.
 */
export function drawLesion(context, probability, { threshold, opacity }, pixelsPerLine = 1) {
  const { width, height } = context.canvas;
  const path = new Path2D();
  for (const curve of traceOutline(probability, SIZE, threshold)) {
    path.moveTo(curve[0] * width, curve[1] * height);
    for (let i = 2; i < curve.length; i += 2) path.lineTo(curve[i] * width, curve[i + 1] * height);
    path.closePath();
  }
  context.fillStyle = `rgb(${COLOR} / ${opacity})`;
  context.fill(path);
  const lineWidth = Math.max(2 * pixelsPerLine, Math.sqrt(width * height) / 250);
  context.lineJoin = "round";
  context.lineWidth = lineWidth + 2 * pixelsPerLine;
  context.strokeStyle = "rgb(0 0 0 / 45%)"; // so that the line shows on pale skin as well
  context.stroke(path);
  context.lineWidth = lineWidth;
  context.strokeStyle = `rgb(${COLOR})`;
  context.stroke(path);
}

/** A PNG of the mask at the picture's size: 0 and 255. */
export function maskFile({ probability, height, width }, threshold) {
  const { mask } = resizeToMask(probability, SIZE, height, width, threshold);
  const context = canvasOf(height, width);
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  // Alpha is the last byte, and all others are equal, so that the byte order only moves alpha.
  const [black, white] = new Uint32Array(new Uint8Array([0, 0, 0, 255, 255, 255, 255, 255]).buffer);
  for (let i = 0; i < mask.length; i++) pixels[i] = mask[i] ? white : black;
  context.putImageData(image, 0, 0);
  return context.canvas.convertToBlob({ type: "image/png" });
}

/** A PNG of the picture at its size, tinted and outlined. */
export function overlayFile({ probability, height, width }, bitmap, look) {
  const context = canvasOf(height, width);
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  drawLesion(context, probability, look);
  return context.canvas.convertToBlob({ type: "image/png" });
}

function canvasOf(height, width) {
  const context = new OffscreenCanvas(width, height).getContext("2d");
  if (!context) throw new Error(`a canvas of ${width} × ${height} pixels is too large for this browser`);
  return context;
}
