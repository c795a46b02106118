// The drawn examples, each outlined in its turn.

import { drawLesion } from "./drawing.js";
import { SIZE } from "./engine.js";
import { THRESHOLD, model } from "./model.js";
import { traceOutline } from "./outline.js";

const LONGER_SIDE = 640; // pixels of a canvas
const status = document.getElementById("status");

async function outline(link) {
  const image = link.querySelector("img");
  const response = await fetch(image.src);
  if (!response.ok) throw new Error(`${image.getAttribute("src")} was not found`);
  const result = await model.outline(await response.blob(), ({ bitmap }) => bitmap.close());
  Object.assign(result, await model.review(result, THRESHOLD));
  const canvas = document.createElement("canvas");
  canvas.ariaHidden = "true";
  const scale = LONGER_SIDE / Math.max(result.width, result.height);
  [canvas.width, canvas.height] = [result.width, result.height].map((side) => Math.round(side * scale));
  drawLesion(canvas.getContext("2d"), traceOutline(result.probability, SIZE, THRESHOLD), 0, 2);
  link.append(canvas);
  const percent = (100 * (await model.measure(result, THRESHOLD))).toFixed(1);
  link.nextElementSibling.append(`: outlined ${percent}\u00a0% of the picture`);
}

try {
  await model.loaded;
  for (const link of document.querySelectorAll("#gallery a")) await outline(link);
  document.documentElement.dataset.state = "ready";
} catch (error) {
  document.documentElement.dataset.state = "error";
  status.className = "error";
  status.textContent = `The examples could not be outlined: ${error.message}. Then reload the page.`;
}
