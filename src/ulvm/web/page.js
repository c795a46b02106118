// The page: wires its elements to the model, and shows what it does.

import { Brush, paint } from "./brush.js";
import { Camera, whyNoCamera } from "./camera.js";
import { drawLesion } from "./drawing.js";
import { SIZE, engineFile } from "./engine.js";
import { THRESHOLD, model } from "./model.js";
import { traceOutline } from "./outline.js";
import { inWords } from "./quality.js";
import { Ruler } from "./ruler.js";
import { zip } from "./zip.js";

const OUTLINE_PIXELS = [1024, 1600]; // least and most for the longer side of its canvas
const THUMBNAIL = [96, 72]; // width and height, pixels
const FIGURES_MS = 200; // a rate that can be read
const MOST_STROKES = 50; // that can be undone
const OF_A_RESULT = ["save-mask", "save-overlay", "ruler", "width-mm", "correct"]; // what needs one

const at = (id) => document.getElementById(id);
const stage = at("stage");
const context = at("canvas").getContext("2d");
const picture = at("picture").getContext("bitmaprenderer");
const camera = new Camera(at("video"));
const ruler = new Ruler(at("frame"), [...document.querySelectorAll(".mark")], useRuler);
const brush = new Brush(at("frame"), at("brush"), beginStroke, stroke);

/**
 * What was opened: {file, name, widthMm}; then result (of model.outline, and corrected in place) or
 * problem, a sentence without the name. `earlier` holds its probability before each stroke, `version` counts changes.
 */
let items = [];
let shown = null; // the item on the stage
let follows = true; // whether the stage shows each item of a batch in its turn
const times = []; // of the network, ms

// ---- states

const element = (tag, properties) => Object.assign(document.createElement(tag), properties);

/** An item's name within a sentence, which keeps its order whatever way the name is written. */
const named = ({ name }) => element("bdi", { textContent: name });

function say(state, ...words) {
  document.documentElement.dataset.state = state;
  at("status").replaceChildren(...words);
}

/** What went wrong: the given sentence and that of every item that failed. */
function showErrors(sentence = "") {
  const failed = camera.isOn ? [] : items.filter((item) => item.problem);
  const sentences = [...(sentence ? [[sentence]] : []), ...failed.map((item) => [named(item), ` ${item.problem}`])];
  at("error").hidden = !sentences.length;
  at("error").replaceChildren(
    ...sentences.map((words) => {
      const paragraph = element("p");
      paragraph.append(...words);
      return paragraph;
    }),
  );
}

async function start() {
  say("loading", "Loading the network");
  try {
    const engine = engineFile();
    await model.loaded;
    say("ready", "Ready");
    navigator.serviceWorker?.register(`service-worker.js?engine=${engine}`);
  } catch (error) {
    say("error", "The network could not be loaded");
    showErrors(`The network could not be loaded: ${error.message}. Then reload the page.`);
    throw error;
  }
}

// ---- pictures

/** Outlines files; `isFolder` says for each of them whether it is none. */
async function open(files, isFolder = []) {
  if (!files.length) return;
  stopCamera();
  const opened = files.map((file, i) => ({
    file,
    name: file.name || "pasted.png",
    widthMm: "",
    result: null,
    problem: isFolder[i] ? "is a folder. Open it, then drop its pictures." : "",
    earlier: [],
    version: 0,
  }));
  [items, follows] = [opened, true];
  listItems();
  show(null);
  showErrors();
  try {
    await started;
  } catch (error) {
    return showErrors(`The network could not be loaded: ${error.message}. Then reload the page.`);
  }
  for (const [i, item] of opened.entries()) {
    if (items !== opened) return; // others were opened meanwhile
    if (item.result || item.problem) continue; // asked for from the list
    if (follows) show(item);
    say("running", opened.length > 1 ? `${i + 1} of ${opened.length}: ` : "Outlining ", named(item));
    await outline(item);
  }
  if (items !== opened) return;
  const done = opened.filter((item) => item.result);
  if (follows && !shown && done.length) await select(done[0]);
  const state = done.length ? "ready" : "error";
  if (opened.length > 1) say(state, `${done.length} of ${opened.length} pictures outlined`);
  else if (done.length) say(state, named(shown), `: ${shown.result.width} × ${shown.result.height}`);
  else say(state, named(opened[0]), " could not be outlined");
}

/** Puts an item on the stage; its picture and outline follow. */
function show(item) {
  shown = item;
  stage.dataset.shows = item ? "picture" : "nothing";
  stage.ariaBusy = String(Boolean(item));
  picture.transferFromImageBitmap(null);
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  context.canvas.ariaLabel = item ? `${item.name}, not outlined yet` : "No picture yet";
  toggleRuler(false);
  toggleBrush(false);
  at("width-mm").value = item?.widthMm ?? "";
  for (const id of OF_A_RESULT) at(id).disabled = true;
  showArea(null);
  sayDoubts([]);
  updateList();
  if (item?.button) reveal(item);
}

/** Shows and outlines an item of the list. */
async function select(item) {
  show(item);
  item.problem = "";
  await outline(item);
}

/** Outlines an item and shows it where it is on the stage; never throws. */
async function outline(item) {
  try {
    const result = await model.outline(item.file, (preview) => showPicture(item, preview));
    item.result ??= result; // one that is there may be corrected
    await measure(item);
    showSpeed(result.ms);
  } catch (error) {
    item.problem = `${error.message}.`;
  }
  if (!items.includes(item)) return;
  if (item === shown && item.problem) show(null);
  if (item === shown) {
    if (!camera.isOn) stage.ariaBusy = "false";
    for (const id of OF_A_RESULT) at(id).disabled = false;
    draw();
  }
  showErrors();
  updateList();
}

function showPicture(item, { bitmap, height, width }) {
  const [across, down] = THUMBNAIL;
  const scale = Math.max(across / bitmap.width, down / bitmap.height);
  item.thumbnail
    ?.getContext("2d")
    .drawImage(bitmap, across / 2 - (bitmap.width * scale) / 2, down / 2 - (bitmap.height * scale) / 2,
      bitmap.width * scale, bitmap.height * scale);
  if (item !== shown) return bitmap.close();
  setRatio(width / height);
  picture.transferFromImageBitmap(bitmap);
}

function listItems() {
  at("items").hidden = at("save-all").hidden = items.length < 2;
  if (items.length < 2) return at("items").replaceChildren();
  at("items").replaceChildren(
    ...items.map((item) => {
      item.button = element("button", { title: item.name });
      item.thumbnail = element("canvas", { width: THUMBNAIL[0], height: THUMBNAIL[1] });
      item.figure = element("span");
      item.button.append(item.thumbnail, element("span", { className: "name", dir: "auto", textContent: item.name }), item.figure);
      item.button.addEventListener("click", () => {
        follows = false;
        select(item);
      });
      const entry = element("li");
      entry.append(item.button);
      return entry;
    }),
  );
}

function updateList() {
  if (items.length < 2) return;
  for (const item of items) {
    item.figure.textContent = item.problem ? "failed" : item.counted ? percent(item.counted.fraction) : "…";
    item.button.classList.toggle("failed", Boolean(item.problem));
    item.button.ariaCurrent = String(item === shown);
  }
  at("save-all").disabled = !items.some((item) => item.result) || items.some((item) => !item.result && !item.problem);
}

/** Scrolls the list, never the page. */
function reveal({ button }) {
  const [list, entry] = [at("items"), button].map((each) => each.getBoundingClientRect());
  at("items").scrollLeft += Math.min(0, entry.left - list.left) + Math.max(0, entry.right - list.right);
}

function showSpeed(ms) {
  times.push(ms);
  if (times.length < 3) return; // the first ones also compile
  const median = [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)];
  at("speed").textContent = `The network took ${median.toFixed(0)} ms a picture on one thread of this device (median of ${times.length}).`;
}

// ---- drawing and measuring

const look = () => ({ threshold: Number(at("threshold").value), opacity: Number(at("opacity").value) / 100 });
const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;

/** The mask's share of the picture, 0..1, counted at its size once for each threshold and change. */
async function measure(item) {
  if (!isCounted(item)) {
    const [{ threshold }, { version }] = [look(), item];
    if (!item.earlier.length) {
      const review = await model.review(item.result, threshold);
      if (item.version === version) Object.assign(item.result, review); // else a hand has corrected it meanwhile
    }
    item.counted = { threshold, version, fraction: await model.measure(item.result, threshold) };
  }
  return item.counted.fraction;
}

const isCounted = ({ counted, version }) => counted?.threshold === look().threshold && counted.version === version;

function squareMillimetres({ widthMm, result: { height, width } }, fraction) {
  return widthMm > 0 ? fraction * widthMm ** 2 * (height / width) : null;
}

function draw() {
  if (!shown?.result || camera.isOn) return;
  const { canvas } = context;
  const { height, width, probability } = shown.result;
  setRatio(width / height);
  const longer = Math.max(width, height);
  const scale = Math.min(Math.max(longer, OUTLINE_PIXELS[0]), OUTLINE_PIXELS[1]) / longer;
  clearCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const pixelsPerLine = Math.max(1, canvas.width / (canvas.clientWidth || canvas.width));
  drawLesion(context, traceOutline(probability, SIZE, look().threshold), look().opacity, pixelsPerLine);
  if (ruler.isOn) drawRuler(pixelsPerLine);
  showFigures();
}

/** Width to height of what is on the stage; a new layout only when it changes. */
function setRatio(ratio) {
  if (stage.style.getPropertyValue("--ratio") !== String(ratio)) stage.style.setProperty("--ratio", ratio);
}

/** An empty canvas of this size; over a video, no new memory for each frame. */
function clearCanvas(width, height) {
  const { canvas } = context;
  if (canvas.width === width && canvas.height === height) return context.clearRect(0, 0, width, height);
  [canvas.width, canvas.height] = [width, height];
}

function drawRuler(pixelsPerLine) {
  context.strokeStyle = "#ffb000";
  context.lineWidth = 2 * pixelsPerLine;
  context.beginPath();
  for (const { x, y } of ruler.points) context.lineTo(x * context.canvas.width, y * context.canvas.height);
  context.stroke();
}

let counting = false;
/** The figures of what is shown, in the end for the newest threshold. */
async function showFigures() {
  if (counting) return;
  counting = true;
  let reviewed = false;
  try {
    while (shown?.result && !isCounted(shown)) {
      await measure(shown);
      reviewed = true;
    }
  } catch (error) {
    return showErrors(`The area could not be counted: ${error.message}.`);
  } finally {
    counting = false;
  }
  if (!shown?.counted || camera.isOn) return;
  if (reviewed) return draw(); // the outline too is by this threshold
  sayDoubts(shown.earlier.length ? [] : shown.result.warnings);
  const { fraction } = shown.counted;
  showArea(fraction, squareMillimetres(shown, fraction));
  const corrected = shown.earlier.length ? ", corrected by hand," : "";
  const found = `the outlined lesion${corrected} covers ${percent(fraction)} of the picture`;
  context.canvas.ariaLabel = `${shown.name}: ${fraction ? found : "nothing is outlined"}`;
}

function sayDoubts(codes) {
  at("doubts").textContent = inWords(codes);
}

function showArea(fraction, mm2 = null) {
  at("area-percent").textContent = fraction === null ? "–" : percent(fraction);
  at("area-mm2").textContent = mm2 === null ? "–" : mm2.toFixed(mm2 < 100 ? 1 : 0);
}

let drawAsked = false;
/** At most once for each frame of the screen, however often a slider moves. */
function redraw() {
  at("threshold-value").textContent = look().threshold.toFixed(2);
  at("opacity-value").textContent = `${at("opacity").value} %`;
  if (drawAsked) return;
  drawAsked = true;
  requestAnimationFrame(() => {
    drawAsked = false;
    if (stage.ariaBusy === "false") draw();
  });
}

/** After the slider was let go: the list's figures too. */
async function measureAll() {
  for (const item of items) if (item.result) await measure(item);
  updateList();
}

// ---- scale

function toggleRuler(on) {
  if (on) toggleBrush(false);
  at("ruler").ariaPressed = String(on);
  at("ruler-form").hidden = !on;
  stage.classList.toggle("measuring", on);
  ruler.toggle(on);
  redraw();
}

function useRuler() {
  const pixels = ruler.distance(shown.result);
  const millimetres = Number(at("ruler-mm").value);
  if (pixels > 0 && millimetres > 0) setWidth(((millimetres * shown.result.width) / pixels).toFixed(2));
  redraw();
}

function setWidth(widthMm) {
  at("width-mm").value = shown.widthMm = widthMm;
  redraw();
}

// ---- corrections

function toggleBrush(on) {
  if (on) toggleRuler(false);
  at("correct").ariaPressed = String(on);
  at("correct-form").hidden = !on;
  at("undo").disabled = !shown?.earlier.length;
  stage.classList.toggle("correcting", on);
  brush.toggle(on);
  brush.radius = at("brush-size").value / 100;
}

function choosePaint(adds) {
  at("add").ariaPressed = String(adds);
  at("erase").ariaPressed = String(!adds);
}

function beginStroke() {
  shown.earlier.push(shown.result.probability.slice());
  if (shown.earlier.length > MOST_STROKES) shown.earlier.shift();
  at("undo").disabled = false;
}

function stroke(points, radius) {
  paint(shown.result.probability, SIZE, points, radius, at("add").ariaPressed === "true");
  changed();
}

function undo() {
  if (!brush.isOn || !shown?.earlier.length) return;
  shown.result.probability = shown.earlier.pop();
  at("undo").disabled = !shown.earlier.length;
  changed();
}

function changed() {
  shown.version++;
  redraw();
}

// ---- camera

let cameraAsked = false; // while the browser asks its user

async function startCamera() {
  if (cameraAsked) return;
  cameraAsked = true;
  try {
    await started;
    await camera.start();
  } catch (error) {
    camera.stop();
    return showErrors(whyNoCamera(error));
  } finally {
    cameraAsked = false;
  }
  showErrors();
  toggleRuler(false);
  toggleBrush(false);
  stage.dataset.shows = "camera";
  stage.ariaBusy = "false";
  showCameraButtons(true);
  context.canvas.ariaLabel = "Video of the camera with the outline of the lesion";
  say("live", "Camera on");
  try {
    await camera.run((frame) => model.outlineFrame(frame, look().threshold), showFrame);
  } catch (error) {
    stopCamera();
    showErrors(`The camera stopped: ${error.message}.`);
  }
}

function showCameraButtons(on) {
  at("camera").textContent = on ? "Stop camera" : "Camera";
  at("camera").ariaPressed = String(on);
  at("capture").hidden = !on;
  at("choose").hidden = on;
}

let figuresAt = 0;
function showFrame({ curves, fraction, ms, height, width }, framesPerSecond) {
  setRatio(width / height);
  clearCanvas(width, height);
  drawLesion(context, curves, look().opacity, Math.max(1, width / context.canvas.clientWidth));
  if (performance.now() < figuresAt + FIGURES_MS) return;
  figuresAt = performance.now();
  showArea(fraction);
  at("live-figures").textContent = `${framesPerSecond.toFixed(0)} frames/s · ${ms.toFixed(0)} ms`;
}

function stopCamera() {
  if (!camera.isOn) return;
  camera.stop();
  showCameraButtons(false);
  at("live-figures").textContent = "";
  say("ready", "Camera off");
  if (!shown) return show(null);
  stage.dataset.shows = "picture";
  stage.ariaBusy = String(!shown.result);
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  draw();
}

// ---- downloads

function save(content, name) {
  const link = element("a", { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Runs a download, and says so if it fails: large pictures may not fit into the browser. */
async function download(make) {
  showErrors();
  try {
    await make();
  } catch (error) {
    showErrors(`The file could not be made: ${error.message.replace(/\.*$/, ".")}`);
  }
}

const stem = (name) => name.replace(/\.[^.]*$/, "");

// An item's files, as the controls say.
const makeMask = ({ result }, { threshold }) => model.maskFile(result, threshold);
const makeOverlay = ({ file, result }, wanted) => model.overlayFile(file, result, wanted);

async function saveShown(make, ending) {
  const [item, wanted] = [shown, look()];
  await measure(item); // the newest threshold's specks are gone then
  save(await make(item, wanted), `${stem(item.name)}${ending}`);
}

async function saveAll() {
  const done = items.filter((item) => item.result);
  const files = [];
  const rows = ["name,width,height,threshold,corrected,area_percent,area_mm2"];
  const taken = new Set(); // without case, for Windows and macOS take A.png and a.png for one file
  for (const [i, item] of done.entries()) {
    say("running", `Writing ${i + 1} of ${done.length}`);
    let name = stem(item.name);
    for (let n = 2; taken.has(name.toLowerCase()); n++) name = `${stem(item.name)}-${n}`;
    taken.add(name.toLowerCase());
    const wanted = look();
    const fraction = await measure(item);
    const [mask, overlay] = await Promise.all([makeMask(item, wanted), makeOverlay(item, wanted)]);
    files.push({ name: `${name}_mask.png`, content: mask }, { name: `${name}_overlay.png`, content: overlay });
    const mm2 = squareMillimetres(item, fraction)?.toFixed(2) ?? "";
    const quoted = `"${item.name.replaceAll('"', '""')}"`;
    const { height, width } = item.result;
    const corrected = item.earlier.length ? "yes" : "no";
    rows.push([quoted, width, height, wanted.threshold, corrected, (100 * fraction).toFixed(3), mm2].join());
  }
  files.push({ name: "areas.csv", content: new Blob([rows.join("\n") + "\n"]) });
  save(await zip(files), "ulvm.zip");
  say("ready", `${done.length} pictures written`);
}

// ---- wiring

at("threshold").value = THRESHOLD;
for (const id of ["choose", "empty"]) at(id).addEventListener("click", () => at("files").click());
at("files").addEventListener("change", () => {
  open([...at("files").files]);
  at("files").value = ""; // so that the same file can be chosen again
});
at("camera").addEventListener("click", () => (camera.isOn ? stopCamera() : startCamera()));
at("capture").addEventListener("click", async () => open([await camera.takePicture()]));
at("example").addEventListener("click", async () => {
  try {
    const response = await fetch("example.jpg");
    if (!response.ok) throw new Error(response.status);
    open([new File([await response.blob()], "example.jpg")]);
  } catch {
    showErrors("The example could not be fetched. Go online, or choose a picture of your own.");
  }
});
for (const id of ["threshold", "opacity"]) at(id).addEventListener("input", redraw);
at("threshold").addEventListener("change", measureAll);
at("width-mm").addEventListener("input", () => setWidth(at("width-mm").value));
at("ruler").addEventListener("click", () => toggleRuler(!ruler.isOn));
at("ruler-mm").addEventListener("input", useRuler);
at("correct").addEventListener("click", () => toggleBrush(!brush.isOn));
for (const id of ["add", "erase"]) at(id).addEventListener("click", () => choosePaint(id === "add"));
at("undo").addEventListener("click", undo);
at("brush-size").addEventListener("input", () => (brush.radius = at("brush-size").value / 100));
for (const end of ["pointerup", "keyup"]) at("frame").addEventListener(end, () => brush.isOn && measureAll());
at("save-mask").addEventListener("click", () => download(() => saveShown(makeMask, "_mask.png")));
at("save-overlay").addEventListener("click", () => download(() => saveShown(makeOverlay, "_overlay.png")));
at("save-all").addEventListener("click", () => download(saveAll));

// Held down, the button or the picture itself shows the picture without the outline.
const bare = (on) => stage.classList.toggle("bare", on);
at("compare").addEventListener("pointerdown", () => bare(true));
at("frame").addEventListener("pointerdown", ({ button }) => bare(!button && !ruler.isOn && !brush.isOn && !camera.isOn));
for (const end of ["pointerup", "pointercancel", "keyup", "blur"]) window.addEventListener(end, () => bare(false));
at("compare").addEventListener("keydown", ({ key }) => bare(key === " " || key === "Enter"));

document.addEventListener("paste", ({ target, clipboardData: { files } }) => {
  if (files.length) open([...files]);
  else if (!target.closest?.("input")) showErrors("No picture was copied. Copy a picture, not its address, and paste it.");
});
document.addEventListener("keydown", (event) => event.key === "Escape" && stopCamera());
document.addEventListener("keydown", (event) => {
  if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || !brush.isOn) return;
  if (event.target.type === "number") return; // it has its own
  event.preventDefault();
  undo();
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  stage.classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? stage.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  const { files, items: given } = event.dataTransfer;
  const isFolder = [...given].filter(({ kind }) => kind === "file").map((each) => each.webkitGetAsEntry?.()?.isDirectory);
  if (files.length) open([...files], isFolder);
  else showErrors("A link or text was dropped, not a picture. Save the picture first, then drop its file.");
});

const started = start();
started.catch(() => {}); // shown already
