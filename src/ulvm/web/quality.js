// How far a result can be trusted: ulvm/quality.py for the page, with the same constants.

const ONE_COLOUR = 8; // a picture has one colour where each channel spans at most this, of 255
const STEP = 4; // colours are measured at every fourth pixel of every fourth row
const START = 2; // the first of them
const RING = 0.25; // of the spot's box: how far its surroundings reach on each side
const SIDES = 12; // sectors of the surroundings, seen from the spot's middle
const FIRST_SIDE = 0.01; // of a turn: no line of pixels lies where one sector ends
const SIDE_LEAST = 3; // colours that a sector is judged by
const FURTHEST = 3; // spreads: a measure further from its mean counts as this far

export const SENTENCES = {
  "one-colour": "the picture has one colour",
  "nothing-found": "no spot was found",
  "unlike-lesion": "what was found looks unlike a lesion",
  "low-contrast": "the spot has little contrast to the skin",
  small: "the spot is small",
  "over-half": "the spot covers more than half of the picture",
  "touches-frame": "the spot touches the edge of the picture",
  fragments: "other spots beside it were left out",
  unsure: "the border is uncertain",
};

let constants;

/** Fetches the constants. */
export async function loadConstants() {
  const response = await fetch(new URL("quality.json", import.meta.url));
  if (!response.ok) throw new Error(`quality.json is missing (${response.status})`);
  constants = await response.json();
}

/** @returns {string} Such as "Unsure: the spot is small."; "" without any warning. */
export const inWords = (codes) =>
  codes.length ? `Unsure: ${codes.map((code) => SENTENCES[code]).join("; ")}.` : "";

/** @param {Uint8Array} picture (size, size, 3). @returns {boolean} Whether there is nothing to see in it. */
export function isOneColour(picture) {
  for (let channel = 0; channel < 3; channel++) {
    let [least, most] = [255, 0];
    for (let i = channel; i < picture.length; i += 3) {
      if (picture[i] < least) least = picture[i];
      if (picture[i] > most) most = picture[i];
      if (most - least > ONE_COLOUR) return false;
    }
  }
  return true;
}

/**
 * @param {Uint8Array} picture (size, size, 3), as the network saw it.
 * @param {Float32Array} probability (size, size), the network's, 0..1.
 * @param {Float32Array} cleaned The same without specks and holes.
 * @param {number} threshold Of the mask.
 * @returns {{quality: number, warnings: string[]}} An estimate of Dice, 0..1, and codes of doubts.
 */
export function assess(picture, probability, cleaned, threshold) {
  if (isOneColour(picture)) return { quality: 0, warnings: ["one-colour"] };
  const limit = Math.fround(threshold);
  const mask = Uint8Array.from(cleaned, (value) => value >= limit);
  if (!mask.includes(1)) return { quality: 0, warnings: ["nothing-found"] };
  const measures = measure(picture, probability, mask, limit);
  const { score, chance } = weigh(measures);
  const dice = interpolate(score, constants.curve.score, constants.curve.dice);
  const quality = dice * Math.min(1, chance / constants.bound["unlike-lesion"]);
  return { quality, warnings: doubts(constants.bound, quality, chance, measures) };
}

/** The score of the outline, and the chance that there is a lesion, 0..1. */
export function weigh(measures) {
  const { mean, spread, outline, lesion } = constants;
  const names = Object.keys(mean);
  const x = names.map((name) => {
    const far = (measures[name] - mean[name]) / spread[name];
    return Math.min(FURTHEST, Math.max(-FURTHEST, far));
  });
  let [score, logit] = [outline.bias, lesion.bias];
  names.forEach((name, i) => {
    score += outline.weight[name] * x[i];
    logit += lesion.weight[name] * x[i];
    lesion.products[i].forEach((weight, j) => (logit += weight * x[i] * x[j]));
  });
  return { score, chance: 1 / (1 + Math.exp(-logit)) };
}

function doubts(bound, quality, chance, measures) {
  const found = {
    "unlike-lesion": chance < bound["unlike-lesion"],
    "low-contrast": Math.expm1(measures.contrast) < bound["low-contrast"],
    small: Math.exp(measures.size) < bound.small,
    "over-half": Math.exp(measures.size) > bound["over-half"],
    "touches-frame": measures.touch ** 2 > bound["touches-frame"],
    fragments: measures.dropped > bound.fragments,
  };
  const codes = Object.keys(found).filter((code) => found[code]);
  return codes.length || quality >= bound.unsure ? codes : ["unsure"];
}

/** What is known of a mask that is not empty; see measure() in ulvm/quality.py. */
export function measure(picture, probability, mask, limit) {
  const size = Math.sqrt(mask.length);
  const last = size - 1;
  let [area, inside, all, doubt, raw, dropped, edge, border, sumX, sumY] = new Array(10).fill(0);
  let [top, bottom, left, right] = [size, 0, size, 0];
  for (let y = 0, i = 0; y < size; y++) {
    for (let x = 0; x < size; x++, i++) {
      const p = probability[i];
      all += p;
      doubt += p * (1 - p);
      raw += p >= limit;
      dropped += p >= limit && !mask[i];
      border += (x < last && mask[i] !== mask[i + 1]) + (y < last && mask[i] !== mask[i + size]);
      if (!mask[i]) continue;
      area++;
      inside += p;
      sumX += x;
      sumY += y;
      edge += (x === 0) + (x === last) + (y === 0) + (y === last);
      [top, bottom, left, right] = [Math.min(top, y), Math.max(bottom, y), Math.min(left, x), Math.max(right, x)];
    }
  }
  const reachY = Math.max(8, RING * (bottom - top + 1));
  const reachX = Math.max(8, RING * (right - left + 1));
  const [middleX, middleY] = [sumX / area + 0.5, sumY / area + 0.5];
  const [spot, ring, frame, outside] = [[], [], [], []];
  const sides = Array.from({ length: SIDES }, () => []);
  for (let y = START; y < size; y += STEP) {
    for (let x = START; x < size; x += STEP) {
      const i = y * size + x;
      const lab = toLab(picture[3 * i], picture[3 * i + 1], picture[3 * i + 2]);
      frame.push(lab);
      if (mask[i]) {
        spot.push(lab);
        continue;
      }
      outside.push(lab);
      if (y < top - reachY || y > bottom + reachY || x < left - reachX || x > right + reachX) continue;
      ring.push(lab);
      const turn = Math.atan2(y + 0.5 - middleY, x + 0.5 - middleX) / (2 * Math.PI);
      sides[Math.floor(SIDES * ((turn + 1 + FIRST_SIDE) % 1))].push(lab);
    }
  }
  const [contrast, spread] = contrastOf(spot, ring);
  const [, a, b] = moments(frame).variance;
  const [, red, yellow] = moments(outside.length ? outside : frame).mean;
  return {
    inside: inside / area,
    overlap: (2 * inside) / (all + area),
    doubt: Math.log(Math.max(doubt / area, 1e-4)),
    size: Math.log(area / size ** 2),
    shape: (border + edge) / Math.sqrt(area),
    touch: Math.sqrt(edge / (4 * size)),
    dropped: dropped / Math.max(1, raw),
    contrast: Math.log1p(contrast),
    weakest: Math.log1p(weakestOf(spot, sides)),
    clarity: Math.log(0.05 + contrast / (1 + spread)),
    aside: Math.hypot((2 * middleY) / size - 1, (2 * middleX) / size - 1),
    colours: Math.log1p(a + b),
    red,
    yellow,
  };
}

function contrastOf(spot, ring) {
  if (!spot.length || !ring.length) return [0, 0];
  const [one, other] = [moments(spot), moments(ring)];
  const sum = (values) => values[0] + values[1] + values[2];
  return [distance(one.mean, other.mean), Math.sqrt((sum(one.variance) + sum(other.variance)) / 2)];
}

/** Least ΔE between the mean of the spot and that of a sector around it; 0 without any. */
function weakestOf(spot, sides) {
  const seen = spot.length ? sides.filter((part) => part.length >= SIDE_LEAST) : [];
  if (!seen.length) return 0;
  const middle = moments(spot).mean;
  return Math.min(...seen.map((part) => distance(moments(part).mean, middle)));
}

const distance = (one, other) => Math.hypot(...one.map((value, i) => value - other[i]));

function moments(colours) {
  const mean = [0, 0, 0];
  const variance = [0, 0, 0];
  for (const colour of colours) for (let i = 0; i < 3; i++) mean[i] += colour[i] / colours.length;
  for (const colour of colours) {
    for (let i = 0; i < 3; i++) variance[i] += (colour[i] - mean[i]) ** 2 / colours.length;
  }
  return { mean, variance };
}

const LINEAR = Float64Array.from({ length: 256 }, (_, i) =>
  i / 255 <= 0.04045 ? i / 255 / 12.92 : ((i / 255 + 0.055) / 1.055) ** 2.4,
);

/** sRGB, 0..255, as CIELAB with white D65. */
function toLab(red, green, blue) {
  const [r, g, b] = [LINEAR[red], LINEAR[green], LINEAR[blue]];
  const root = (value) => (value > (6 / 29) ** 3 ? Math.cbrt(value) : (value * (29 / 6) ** 2) / 3 + 4 / 29);
  const x = root((0.4123908 * r + 0.3575843 * g + 0.1804808 * b) / 0.9504559);
  const y = root(0.212639 * r + 0.7151687 * g + 0.0721923 * b);
  const z = root((0.0193308 * r + 0.1191948 * g + 0.9505322 * b) / 1.0890578);
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

/** As numpy.interp does: straight lines between the points, level beyond the ends. */
function interpolate(at, xs, ys) {
  if (at <= xs[0]) return ys[0];
  for (let i = 1; i < xs.length; i++) {
    if (at < xs[i]) return ys[i - 1] + ((ys[i] - ys[i - 1]) * (at - xs[i - 1])) / (xs[i] - xs[i - 1]);
  }
  return ys[ys.length - 1];
}
