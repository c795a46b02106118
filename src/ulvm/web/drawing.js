const COLOR = "0 230 210"; // as ulvm.image.draw_overlay

/**
 * Outline and tint over what the canvas holds.
 *
 * @param {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} context
 * @param {Float32Array[]} curves Of traceOutline.
 * @param {number} opacity Of the tint, 0..1; the outline stays opaque.
 * @param {number} pixelsPerLine Canvas pixels for one of the screen, so that lines stay visible.
 */
export function drawLesion(context, curves, opacity, pixelsPerLine = 1) {
  const { width, height } = context.canvas;
  const path = new Path2D();
  for (const curve of curves) {
    path.moveTo(curve[0] * width, curve[1] * height);
    for (let i = 2; i < curve.length; i += 2) path.lineTo(curve[i] * width, curve[i + 1] * height);
    path.closePath();
  }
  context.fillStyle = `rgb(${COLOR} / ${opacity})`;
  if (opacity) context.fill(path);
  const lineWidth = Math.max(2 * pixelsPerLine, Math.sqrt(width * height) / 250);
  context.lineJoin = "round";
  context.lineWidth = lineWidth + 2 * pixelsPerLine;
  context.strokeStyle = "rgb(0 0 0 / 45%)"; // so that the line shows on pale skin as well
  context.stroke(path);
  context.lineWidth = lineWidth;
  context.strokeStyle = `rgb(${COLOR})`;
  context.stroke(path);
}
