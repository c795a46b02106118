// The border of the mask as closed curves, by marching squares: smooth at any size, and far
// quicker to draw over a video than pixels.

/**
 * @param {Float32Array} probability (size, size), 0..1.
 * @param {number} size Height and width of the probability.
 * @param {number} threshold 0..1.
 * @returns {Float32Array[]} Each closed curve as x, y, x, y, …, in 0..1 of width and height.
 */
export function traceOutline(probability, size, threshold) {
  const limit = Math.fround(threshold);
  // Cells lie between pixel centres; one more all round, outside the frame, closes the curves.
  const side = size + 1;
  const isInside = (x, y) =>
    x >= 0 && y >= 0 && x < size && y < size && probability[y * size + x] >= limit;
  // Edges of cells: the one right of point (x, y) has an even number, the one below it an odd one.
  const right = (x, y) => 2 * ((y + 1) * (side + 1) + x + 1);
  const below = (x, y) => right(x, y) + 1;
  const next = new Map();
  for (let y = -1; y < size; y++) {
    for (let x = -1; x < size; x++) {
      const corners =
        (isInside(x, y) ? 8 : 0) | (isInside(x + 1, y) ? 4 : 0) |
        (isInside(x + 1, y + 1) ? 2 : 0) | (isInside(x, y + 1) ? 1 : 0);
      if (corners === 0 || corners === 15) continue;
      const sides = [right(x, y), below(x + 1, y), right(x, y + 1), below(x, y)];
      for (const [from, to] of STEPS[corners]) next.set(sides[from], sides[to]);
    }
  }
  const curves = [];
  while (next.size) {
    const points = [];
    let [edge] = next.keys();
    while (next.has(edge)) {
      points.push(...crossing(edge));
      const following = next.get(edge);
      next.delete(edge);
      edge = following;
    }
    curves.push(Float32Array.from(points));
  }
  return curves;

  function crossing(edge) {
    const cell = edge >> 1;
    const x = (cell % (side + 1)) - 1;
    const y = Math.floor(cell / (side + 1)) - 1;
    const [dx, dy] = edge & 1 ? [0, 1] : [1, 0];
    const within = x >= 0 && y >= 0 && x + dx < size && y + dy < size;
    let part = 0.5; // on the frame's border: half a pixel beyond the last centre
    if (within) {
      const start = probability[y * size + x];
      part = (limit - start) / (probability[(y + dy) * size + x + dx] - start);
    }
    return [(x + 0.5 + dx * part) / size, (y + 0.5 + dy * part) / size];
  }
}

// For each pattern of corners inside (top left 8, top right 4, bottom right 2, bottom left 1):
// from which side to which (0 top, 1 right, 2 bottom, 3 left), the inside always on one hand.
const STEPS = [
  [], [[2, 3]], [[1, 2]], [[1, 3]], [[0, 1]], [[0, 1], [2, 3]], [[0, 2]], [[0, 3]],
  [[3, 0]], [[2, 0]], [[3, 0], [1, 2]], [[1, 0]], [[3, 1]], [[2, 1]], [[3, 2]], [],
];
