// PNG files of 16 bits whose samples use 12, 10 or 8 of them, as cameras and scanners write them.
// Browsers keep the upper eight bits only, which leaves 16, 4 or 1 different values.

const SIGNATURE = 0x89504e47;
const CHANNELS = { 0: 1, 2: 3, 4: 2, 6: 4 }; // by colour type: grey, RGB, each with alpha
const MOST_PIXELS = 2 ** 25; // of larger ones the browser's own reading is taken

/**
 * Source: PNG specification, 3rd edition, sections 5 (chunks), 7 (layout) and 9 (filters).
 *
 * @param {Blob} file
 * @returns {Promise<ImageData | null>} Eight bits by the samples' own range; null where the browser
 *   reads it as well: any other file, samples of the whole range, and rare kinds of PNG.
 */
export async function readDeepPng(file) {
  const head = new DataView(await file.slice(0, 33).arrayBuffer());
  if (head.byteLength < 33 || head.getUint32(0) !== SIGNATURE || head.getUint8(24) !== 16) return null;
  const [width, height] = [head.getUint32(16), head.getUint32(20)];
  const channels = CHANNELS[head.getUint8(25)];
  if (!channels || head.getUint8(28) || width * height > MOST_PIXELS) return null; // or interlaced
  const data = [];
  const view = new DataView(await file.arrayBuffer());
  for (let at = 8; at + 12 <= view.byteLength; at += 12 + view.getUint32(at)) {
    const kind = view.getUint32(at + 4);
    if (kind === 0x74524e53 || kind === 0x65584966) return null; // tRNS: a colour is clear; eXIf: it is turned
    if (kind === 0x49444154) data.push(file.slice(at + 8, at + 8 + view.getUint32(at))); // IDAT
  }
  const inflated = new Blob(data).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(inflated).arrayBuffer());
  const stride = 2 * channels * width;
  if (rows.length < height * (stride + 1)) return null; // damaged: the browser says so
  unfilter(rows, height, stride, 2 * channels);
  return scale(rows, height, width, channels);
}

/** Undoes the rows' filters in place; each row begins with a byte that names its own. */
function unfilter(rows, height, stride, step) {
  for (let y = 0; y < height; y++) {
    const start = y * (stride + 1) + 1;
    const filter = rows[start - 1];
    for (let i = 0; i < stride; i++) {
      const at = start + i;
      const left = i < step ? 0 : rows[at - step];
      const above = y ? rows[at - stride - 1] : 0;
      if (filter === 1) rows[at] += left;
      else if (filter === 2) rows[at] += above;
      else if (filter === 3) rows[at] += (left + above) >> 1;
      else if (filter === 4) rows[at] += nearest(left, above, y && i >= step ? rows[at - stride - 1 - step] : 0);
    }
  }
}

/** Paeth's: of left, above and the corner between, what is nearest to left + above - corner. */
function nearest(left, above, corner) {
  const [a, b, c] = [Math.abs(above - corner), Math.abs(left - corner), Math.abs(left + above - 2 * corner)];
  if (a <= b && a <= c) return left;
  return b <= c ? above : corner;
}

function scale(rows, height, width, channels) {
  const colours = channels < 3 ? 1 : 3;
  const sample = (y, x, channel) => {
    const at = y * (2 * channels * width + 1) + 1 + 2 * (x * channels + channel);
    return rows[at] * 256 + rows[at + 1];
  };
  let largest = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < colours; channel++) largest = Math.max(largest, sample(y, x, channel));
    }
  }
  const white = [255, 1023, 4095].find((value) => largest <= value);
  if (!largest || !white) return null;
  const image = new ImageData(width, height);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 4) {
      for (let channel = 0; channel < 3; channel++) {
        image.data[to + channel] = Math.floor((sample(y, x, channel % colours) * 255 + (white >> 1)) / white);
      }
      image.data[to + 3] = colours === channels ? 255 : sample(y, x, colours) >> 8;
    }
  }
  return image;
}
