// WebP files whose EXIF says how they are to be turned, which some browsers, such as Chromium, pass over.

// 1 × 2 pixels, to be turned by a quarter.
const TURNED =
  "UklGRk4AAABXRUJQVlA4WAoAAAAIAAAAAAAAAQAAVlA4TA4AAAAvAEAAAAcQEf0PRET/A0VYSUYaAAAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA=";
const ORIENTATION = 0x0112; // a tag of EXIF
const EXIF_FLAG = 8; // of VP8X

let turns; // whether this browser turns them

async function browserTurns() {
  const bytes = Uint8Array.from(atob(TURNED), (letter) => letter.charCodeAt(0));
  return (await createImageBitmap(new Blob([bytes]))).width === 2;
}

/**
 * Source: WebP container specification; TIFF 6.0, section 2.
 *
 * @param {Blob} file
 * @returns {Promise<number>} How the browser's reading is still to be turned, 1..8 as in EXIF; 1 is upright.
 */
export async function orientationLeft(file) {
  const head = await text(file, 0, 21);
  if (!/^RIFF.{4}WEBPVP8X/s.test(head) || !(head.charCodeAt(20) & EXIF_FLAG)) return 1;
  if (await (turns ??= browserTurns())) return 1;
  for (let at = 12; at + 8 <= file.size; ) {
    const chunk = new DataView(await file.slice(at, at + 8).arrayBuffer());
    const length = chunk.getUint32(4, true);
    if (chunk.getUint32(0) === 0x45584946) return orientationOf(await file.slice(at + 8, at + 8 + length).arrayBuffer()); // EXIF
    at += 8 + length + (length % 2);
  }
  return 1;
}

const text = async (file, from, to) =>
  String.fromCharCode(...new Uint8Array(await file.slice(from, to).arrayBuffer()));

function orientationOf(buffer) {
  const view = new DataView(buffer);
  try {
    const start = view.getUint32(0) === 0x45786966 ? 6 : 0; // "Exif\0\0" may come first
    const little = view.getUint16(start) === 0x4949;
    const table = start + view.getUint32(start + 4, little);
    for (let i = 0; i < view.getUint16(table, little); i++) {
      const entry = table + 2 + 12 * i;
      if (view.getUint16(entry, little) !== ORIENTATION) continue;
      const value = view.getUint16(entry + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch {
    // Cut short: as if it weren't there.
  }
  return 1;
}

/** For setTransform: where the corners of a picture of this size come to lie. */
export const turning = (orientation, width, height) =>
  ({
    2: [-1, 0, 0, 1, width, 0],
    3: [-1, 0, 0, -1, width, height],
    4: [1, 0, 0, -1, 0, height],
    5: [0, 1, 1, 0, 0, 0],
    6: [0, 1, -1, 0, height, 0],
    7: [0, -1, -1, 0, height, width],
    8: [0, -1, 1, 0, 0, width],
  })[orientation];
