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
  // One more point all round, outside the frame, closes the curves. Cells lie between points.
  const side = size + 2;
  const inside = new Uint8Array(side * side);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) inside[(y + 1) * side + x + 1] = probability[y * size + x] >= limit;
  }
  // Edges of cells: the one right of a point has an even number, the one below it an odd one.
  const right = (point) => 2 * point;
  const below = (point) => 2 * point + 1;
  const next = new Int32Array(2 * side * side).fill(-1); // for each edge that a curve crosses
  const edges = [];
  // Past the end of a row all is outside, as in the cells of the border.
  for (let at = 0; at < side * (side - 1) - 1; at++) {
    const corners =
      (inside[at] << 3) | (inside[at + 1] << 2) | (inside[at + side + 1] << 1) | inside[at + side];
    if (corners === 0 || corners === 15) continue;
    const sides = [right(at), below(at + 1), right(at + side), below(at)];
    for (const [from, to] of STEPS[corners]) {
      next[sides[from]] = sides[to];
      edges.push(sides[from]);
    }
  }
  const curves = [];
  for (let edge of edges) {
    const points = [];
    while (next[edge] >= 0) {
      const following = next[edge];
      next[edge] = -1;
      const [x, y] = crossing(edge);
      points.push(x, y);
      edge = following;
    }
    if (points.length) curves.push(Float32Array.from(points));
  }
  return curves;

  function crossing(edge) {
    const point = edge >> 1;
    const x = (point % side) - 1;
    const y = Math.floor(point / side) - 1;
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
