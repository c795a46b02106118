// Pillow's bilinear resampling, as `ulvm.image.resize` does it: it averages when shrinking, takes
// half-pixel centres, and on pictures computes in whole numbers, columns first, then rows.
// Source: Pillow, src/libImaging/Resample.c.
// Differs: where width grows and height shrinks, some versions of Pillow do the rows first; a value
// may then differ by 1.

const PRECISION_BITS = 22;
const ONE = 1 << PRECISION_BITS;
const HALF = 1 << (PRECISION_BITS - 1);

/** For each output pixel: its first input pixel, how many it takes, and their weights. */
function kernels(inSize, outSize) {
  const scale = inSize / outSize;
  const support = Math.max(scale, 1);
  const taps = 2 * Math.ceil(support) + 1;
  const first = new Int32Array(outSize);
  const count = new Int32Array(outSize);
  const weights = new Float64Array(outSize * taps);
  for (let out = 0; out < outSize; out++) {
    const center = (out + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(inSize, Math.trunc(center + support + 0.5));
    let sum = 0;
    for (let i = start; i < end; i++) {
      const weight = Math.max(0, 1 - Math.abs((i - center + 0.5) / support));
      weights[out * taps + i - start] = weight;
      sum += weight;
    }
    for (let i = 0; i < end - start; i++) weights[out * taps + i] /= sum;
    first[out] = start;
    count[out] = end - start;
  }
  return { first, count, weights, taps };
}

const fixedPoint = ({ weights }) => Int32Array.from(weights, (w) => Math.trunc(w * ONE + 0.5));

/**
 * A picture at the network's size, from bands of rows, so that it is never held whole.
 *
 * @param {(top: number, rows: number) => Uint8ClampedArray} readRows RGBA of some rows, 0..255.
 * @param {number} height Of the picture, pixels.
 * @param {number} width Of the picture, pixels.
 * @param {number} size Height and width wanted, pixels.
 * @returns {Uint8Array} RGB (size, size, 3), 0..255.
 */
export function resizeRgb(readRows, height, width, size) {
  if (height === size && width === size) return withoutAlpha(readRows(0, size));
  const across = kernels(width, size);
  const acrossWeights = fixedPoint(across);
  const narrow = new Uint8Array(height * size * 3); // (height, size, 3)
  const bandRows = Math.max(1, Math.floor(2 ** 20 / width));
  for (let top = 0; top < height; top += bandRows) {
    const rows = Math.min(bandRows, height - top);
    const band = readRows(top, rows); // (rows, width, 4)
    for (let x = 0; x < size; x++) {
      const start = across.first[x];
      const taps = across.count[x];
      const weightsAt = x * across.taps;
      for (let y = 0; y < rows; y++) {
        let at = (y * width + start) * 4;
        let red = HALF;
        let green = HALF;
        let blue = HALF;
        for (let i = 0; i < taps; i++, at += 4) {
          const weight = acrossWeights[weightsAt + i];
          red += band[at] * weight;
          green += band[at + 1] * weight;
          blue += band[at + 2] * weight;
        }
        const to = ((top + y) * size + x) * 3;
        narrow[to] = red >> PRECISION_BITS;
        narrow[to + 1] = green >> PRECISION_BITS;
        narrow[to + 2] = blue >> PRECISION_BITS;
      }
    }
  }
  const down = kernels(height, size);
  const downWeights = fixedPoint(down);
  const rowLength = size * 3;
  const resized = new Uint8Array(size * rowLength); // (size, size, 3)
  const sums = new Int32Array(rowLength);
  for (let y = 0; y < size; y++) {
    sums.fill(HALF);
    for (let i = 0; i < down.count[y]; i++) {
      const weight = downWeights[y * down.taps + i];
      const from = (down.first[y] + i) * rowLength;
      for (let x = 0; x < rowLength; x++) sums[x] += narrow[from + x] * weight;
    }
    for (let x = 0; x < rowLength; x++) resized[y * rowLength + x] = sums[x] >> PRECISION_BITS;
  }
  return resized;
}

function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
}

/**
 * The mask at the size of the picture: where the resized probability reaches the threshold.
 *
 * @param {Float32Array} probability (size, size), 0..1.
 * @param {number} size Height and width of the probability.
 * @param {number} height Of the picture, pixels.
 * @param {number} width Of the picture, pixels.
 * @param {number} threshold 0..1.
 * @returns {{mask: Uint8Array, area: number}} 0 and 1, (height, width), and how many are 1.
 */
export function resizeToMask(probability, size, height, width, threshold) {
  const across = kernels(size, width);
  const wide = new Float32Array(size * width); // (size, width)
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let i = 0; i < across.count[x]; i++) {
        sum += probability[y * size + across.first[x] + i] * across.weights[x * across.taps + i];
      }
      wide[y * width + x] = sum;
    }
  }
  const down = kernels(size, height);
  const mask = new Uint8Array(height * width); // (height, width)
  const row = new Float64Array(width);
  const limit = Math.fround(threshold);
  let area = 0;
  for (let y = 0; y < height; y++) {
    row.fill(0);
    for (let i = 0; i < down.count[y]; i++) {
      const weight = down.weights[y * down.taps + i];
      const from = (down.first[y] + i) * width;
      for (let x = 0; x < width; x++) row[x] += wide[from + x] * weight;
    }
    const to = y * width;
    for (let x = 0; x < width; x++) {
      if (Math.fround(row[x]) >= limit) {
        mask[to + x] = 1;
        area++;
      }
    }
  }
  return { mask, area };
}
