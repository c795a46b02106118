// The page: wires its elements to the model, and shows what it does.

import { Camera } from "./camera.js";
import { drawLesion, maskFile, overlayFile } from "./drawing.js";
import { Model, SIZE, THRESHOLD } from "./model.js";
import { resizeToMask } from "./resample.js";
import { zip } from "./zip.js";

const SHOWN_PIXELS = [1024, 1600]; // least and most for the longer side of the picture on the screen

const at = (id) => document.getElementById(id);
const stage = at("stage");
const context = at("canvas").getContext("2d");
const camera = new Camera(at("video"));

let model;
let secondModel;
/** What was opened: {file, name}; then failed, or probability, height and width. */
let items = [];
/** The item on the stage and its decoded picture. */
let shown = null;
let bitmap = null;
let marks = []; // of the ruler, x and y in 0..1

// ---- states

function say(state, text) {
  document.documentElement.dataset.state = state;
  at("status").textContent = text;
}

function showError(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

async function startModel() {
  say("loading", "Loading the network");
  at("loading").hidden = false;
  model = new Model(({ loaded, total }) => {
    if (total) [at("progress").max, at("progress").value] = [total, loaded];
    at("bytes").textContent = `${megabytes(loaded)}${total ? ` of ${megabytes(total)}` : ""} MB`;
  });
  try {
    describeEngine(await model.load());
  } catch (error) {
    say("error", "The network could not be loaded");
    showError(`The network could not be loaded: ${error.message}. Reload the page to try again.`);
    throw error;
  } finally {
    at("loading").hidden = true;
  }
  say("ready", "Ready");
}

function describeEngine({ threads, bytes, inferMs }) {
  const by = threads > 1 ? `${threads} threads` : "1 thread";
  at("engine").textContent = `Network and runtime: ${megabytes(bytes)} MB, ${inferMs.toFixed(1)} ms a picture on ${by}.`;
}

// ---- pictures

async function open(files) {
  if (!files.length) return;
  stopCamera();
  showError("");
  const opened = files.map((file) => ({ file, name: file.name || "pasted.png" }));
  items = opened;
  listItems();
  try {
    await modelReady;
  } catch {
    return; // shown already
  }
  for (const [i, item] of opened.entries()) {
    if (items !== opened) return; // others were opened meanwhile
    say("running", opened.length > 1 ? `${i + 1} of ${opened.length}: ${item.name}` : `Outlining ${item.name}`);
    await segmentItem(item);
  }
  if (items === opened && opened.length > 1) {
    const done = opened.filter((item) => item.probability).length;
    say("ready", `${done} of ${opened.length} pictures outlined`);
  }
}

/** Outlines an item, puts it on the stage and says how it went; never throws. */
async function segmentItem(item) {
  try {
    const { bitmap: picture, prepareMs, inferMs, ...result } = await model.segment(item.file, true);
    if (!items.includes(item)) return picture.close();
    Object.assign(item, result);
    show(item, picture);
    const times = `read in ${prepareMs.toFixed(0)} ms, outlined in ${inferMs.toFixed(0)} ms`;
    say(isLast(item) ? "ready" : "running", `${item.name}: ${item.width} × ${item.height}, ${times}`);
  } catch (error) {
    if (!items.includes(item)) return;
    item.failed = true;
    if (!items.includes(shown)) show(null);
    showError(`${item.name} ${error.message}.`);
    say(isLast(item) ? "error" : "running", `${item.name} could not be outlined`);
  }
  updateList();
}

const isLast = (item) => items.every((each) => each === item || each.probability || each.failed);

function show(item, picture = null) {
  bitmap?.close();
  [shown, bitmap, marks] = [item, picture, []];
  stage.dataset.shows = item ? "picture" : "nothing";
  for (const id of ["save-mask", "save-overlay", "ruler"]) at(id).disabled = !item;
  draw();
}

function listItems() {
  at("items").hidden = at("save-all").hidden = items.length < 2;
  at("items").replaceChildren(
    ...items.map((item) => {
      item.button = document.createElement("button");
      item.figure = document.createElement("span");
      item.button.append(item.name, item.figure);
      item.button.addEventListener("click", () => {
        showError("");
        segmentItem(item);
      });
      const entry = document.createElement("li");
      entry.append(item.button);
      return entry;
    }),
  );
  updateList();
}

function updateList() {
  for (const item of items) {
    item.figure.textContent = item.failed ? "failed" : item.probability ? percent(areaOf(item)) : "…";
    item.button.classList.toggle("failed", Boolean(item.failed));
    item.button.ariaCurrent = String(item === shown);
  }
}

// ---- drawing and measuring

const look = () => ({ threshold: Number(at("threshold").value), opacity: Number(at("opacity").value) / 100 });
const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;

/** The mask's share of the picture, 0..1, counted at the picture's size once for each threshold. */
function areaOf(item) {
  const { threshold } = look();
  if (item.counted?.threshold !== threshold) {
    const { probability, height, width } = item;
    const { area } = resizeToMask(probability, SIZE, height, width, threshold);
    item.counted = { threshold, fraction: area / (height * width) };
  }
  return item.counted.fraction;
}

function squareMillimetres({ height, width }, fraction) {
  const widthMm = Number(at("width-mm").value);
  return widthMm > 0 ? fraction * widthMm ** 2 * (height / width) : null;
}

function draw() {
  if (!shown) {
    at("area-percent").textContent = at("area-mm2").textContent = "–";
    return;
  }
  const { canvas } = context;
  const longer = Math.max(shown.width, shown.height);
  const scale = Math.min(Math.max(longer, SHOWN_PIXELS[0]), SHOWN_PIXELS[1]) / longer;
  resizeCanvas(Math.max(1, Math.round(shown.width * scale)), Math.max(1, Math.round(shown.height * scale)));
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const pixelsPerLine = Math.max(1, canvas.width / (canvas.clientWidth || canvas.width));
  drawLesion(context, shown.probability, look(), pixelsPerLine);
  drawMarks(pixelsPerLine);
  const fraction = areaOf(shown);
  showArea(fraction, squareMillimetres(shown, fraction));
  canvas.ariaLabel = `${shown.name}: the outlined lesion covers ${percent(fraction)} of the picture`;
}

/** Sets the canvas's pixels, which clears it, and its place on the page. */
/** An empty canvas of this size. */
function resizeCanvas(width, height) {
  const { canvas } = context;
  // Over a video, no new memory and no new layout for each frame.
  if (canvas.width === width && canvas.height === height) return context.clearRect(0, 0, width, height);
  [canvas.width, canvas.height] = [width, height];
  stage.style.setProperty("--ratio", width / height);
}

function drawMarks(pixelsPerLine) {
  context.strokeStyle = context.fillStyle = "#ffb000";
  context.lineWidth = 2 * pixelsPerLine;
  context.beginPath();
  for (const [x, y] of marks) context.lineTo(x * context.canvas.width, y * context.canvas.height);
  context.stroke();
  for (const [x, y] of marks) {
    context.beginPath();
    context.arc(x * context.canvas.width, y * context.canvas.height, 4 * pixelsPerLine, 0, 7);
    context.fill();
  }
}

function showArea(fraction, mm2) {
  at("area-percent").textContent = percent(fraction);
  at("area-mm2").textContent = mm2 === null ? "–" : mm2.toFixed(mm2 < 100 ? 1 : 0);
}

let drawAsked = false;
/** At most once for each frame of the screen, however often a slider moves. */
function redraw() {
  at("threshold-value").textContent = look().threshold.toFixed(2);
  at("opacity-value").textContent = `${at("opacity").value} %`;
  if (drawAsked || camera.isOn) return;
  drawAsked = true;
  requestAnimationFrame(() => {
    drawAsked = false;
    draw();
  });
}

// ---- ruler

function toggleRuler(on) {
  marks = [];
  at("ruler").ariaPressed = String(on);
  at("ruler-form").hidden = !on;
  stage.classList.toggle("measuring", on);
  redraw();
}

function addMark(event) {
  if (at("ruler-form").hidden || !shown || camera.isOn) return;
  const box = context.canvas.getBoundingClientRect();
  if (marks.length === 2) marks = [];
  marks.push([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
  useRuler();
}

function useRuler() {
  if (marks.length === 2) {
    const [[x0, y0], [x1, y1]] = marks;
    const pixels = Math.hypot((x1 - x0) * shown.width, (y1 - y0) * shown.height);
    const millimetres = Number(at("ruler-mm").value);
    if (pixels > 0 && millimetres > 0) {
      at("width-mm").value = ((millimetres * shown.width) / pixels).toFixed(2);
    }
  }
  redraw();
}

// ---- camera

let cameraAsked = false; // while the browser asks its user

async function startCamera() {
  if (cameraAsked) return;
  cameraAsked = true;
  showError("");
  try {
    await modelReady;
    await camera.start();
  } catch (error) {
    const refused = error.name === "NotAllowedError";
    showError(
      refused
        ? "The browser was told not to give the camera to this page; allow it beside the address and try again."
        : `The camera cannot be used: ${error.message}.`,
    );
    return;
  } finally {
    cameraAsked = false;
  }
  stage.dataset.shows = "camera";
  at("camera").textContent = "Stop camera";
  at("camera").ariaPressed = "true";
  at("capture").hidden = false;
  at("choose").hidden = true;
  context.canvas.ariaLabel = "Video of the camera with the outline of the lesion";
  say("live", "Camera on");
  try {
    await camera.run(await liveModels(), showFrame);
  } catch (error) {
    stopCamera();
    showError(`The camera stopped: ${error.message}.`);
  }
}

/** The page's model, and a second one where there is a core for it. */
async function liveModels() {
  if (navigator.hardwareConcurrency < 2) return [model];
  if (!secondModel) {
    secondModel = new Model(() => {});
    await secondModel.load();
  }
  return [model, secondModel];
}

function showFrame({ probability, height, width, inferMs }, framesPerSecond) {
  const { canvas } = context;
  resizeCanvas(width, height);
  drawLesion(context, probability, look(), Math.max(1, width / canvas.clientWidth));
  const { threshold } = look();
  let pixels = 0;
  for (let i = 0; i < probability.length; i++) pixels += probability[i] >= threshold;
  const fraction = pixels / probability.length;
  showArea(fraction, squareMillimetres({ height, width }, fraction));
  at("live-figures").textContent = `${framesPerSecond.toFixed(0)} frames/s · ${inferMs.toFixed(0)} ms`;
}

function stopCamera() {
  if (!camera.isOn) return;
  camera.stop();
  at("camera").textContent = "Camera";
  at("camera").ariaPressed = "false";
  at("capture").hidden = true;
  at("choose").hidden = false;
  at("live-figures").textContent = "";
  stage.dataset.shows = shown ? "picture" : "nothing";
  say("ready", "Camera off");
  draw();
}

// ---- downloads

function save(content, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Runs a download, and says so if it fails: large pictures may not fit into the browser. */
async function download(make) {
  showError("");
  try {
    await make();
  } catch (error) {
    showError(`The file could not be made: ${error.message}.`);
  }
}

const stem = (name) => name.replace(/\.[^.]*$/, "");

async function saveAll() {
  const done = items.filter((item) => item.probability);
  const files = [];
  const rows = ["name,width,height,threshold,area_percent,area_mm2"];
  const taken = new Map();
  for (const [i, item] of done.entries()) {
    say("running", `Writing ${i + 1} of ${done.length}`);
    const repeats = (taken.get(stem(item.name)) ?? 0) + 1;
    taken.set(stem(item.name), repeats);
    const name = repeats > 1 ? `${stem(item.name)}-${repeats}` : stem(item.name);
    const picture = await createImageBitmap(item.file);
    files.push({ name: `${name}_mask.png`, content: await maskFile(item, look().threshold) });
    files.push({ name: `${name}_overlay.png`, content: await overlayFile(item, picture, look()) });
    picture.close();
    const fraction = areaOf(item);
    const mm2 = squareMillimetres(item, fraction)?.toFixed(2) ?? "";
    const quoted = `"${item.name.replaceAll('"', '""')}"`;
    rows.push([quoted, item.width, item.height, look().threshold, (100 * fraction).toFixed(3), mm2].join());
  }
  files.push({ name: "areas.csv", content: new Blob([rows.join("\n") + "\n"]) });
  save(await zip(files), "ulvm.zip");
  say("ready", `${done.length} pictures written`);
}

// ---- wiring

at("threshold").value = THRESHOLD;
at("choose").addEventListener("click", () => at("files").click());
at("files").addEventListener("change", () => {
  open([...at("files").files]);
  at("files").value = ""; // so that the same file can be chosen again
});
at("camera").addEventListener("click", () => (camera.isOn ? stopCamera() : startCamera()));
at("capture").addEventListener("click", async () => open([await camera.takePicture()]));
at("example").addEventListener("click", async () => {
  const response = await fetch("example.jpg");
  open([new File([await response.blob()], "example.jpg")]);
});
for (const id of ["threshold", "opacity", "width-mm"]) at(id).addEventListener("input", redraw);
at("threshold").addEventListener("change", updateList);
at("ruler").addEventListener("click", () => toggleRuler(at("ruler-form").hidden));
at("ruler-mm").addEventListener("input", useRuler);
at("canvas").addEventListener("click", addMark);
at("save-mask").addEventListener("click", () =>
  download(async () => save(await maskFile(shown, look().threshold), `${stem(shown.name)}_mask.png`)),
);
at("save-overlay").addEventListener("click", () =>
  download(async () => save(await overlayFile(shown, bitmap, look()), `${stem(shown.name)}_overlay.png`)),
);
at("save-all").addEventListener("click", () => download(saveAll));
document.addEventListener("paste", (event) => open([...event.clipboardData.files]));
document.addEventListener("keydown", (event) => event.key === "Escape" && stopCamera());
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  stage.classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? stage.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  open([...event.dataTransfer.files]);
});

const modelReady = startModel();
modelReady.catch(() => {}); // shown already
navigator.serviceWorker?.register("service-worker.js");
