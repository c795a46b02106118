// Correcting an outline: a round brush over the picture, by pointer or keyboard, and what it paints.

import { movedBy, pointIn, pointOf } from "./ruler.js";

/**
 * Paints from one point to another: 1 where the brush adds, 0 where it erases, soft within a pixel.
 *
 * @param {Float32Array} probability (size, size), 0..1; changed in place.
 * @param {number} size Height and width of the probability.
 * @param {{x: number, y: number}[]} points From and to, in 0..1 of width and height.
 * @param {{x: number, y: number}} radius In 0..1 of width and of height.
 * @param {boolean} adds Whether it adds to the lesion or erases.
 */
export function paint(probability, size, [from, to], radius, adds) {
  const [across, down] = [radius.x * size, radius.y * size];
  const [x0, y0, x1, y1] = [from.x, from.y, to.x, to.y].map((part) => part * size - 0.5);
  const [dx, dy] = [(x1 - x0) / across, (y1 - y0) / down];
  const long = dx * dx + dy * dy;
  const within = (least, most) => [Math.max(0, Math.floor(least - 1)), Math.min(size - 1, Math.ceil(most + 1))];
  const [left, right] = within(Math.min(x0, x1) - across, Math.max(x0, x1) + across);
  const [top, bottom] = within(Math.min(y0, y1) - down, Math.max(y0, y1) + down);
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const [fromX, fromY] = [(x - x0) / across, (y - y0) / down];
      const part = long ? Math.min(1, Math.max(0, (fromX * dx + fromY * dy) / long)) : 0;
      const away = Math.hypot(fromX - part * dx, fromY - part * dy); // 1 on the brush's edge
      const covered = Math.min(1, Math.max(0, (1 - away) * Math.min(across, down) + 0.5));
      const at = y * size + x;
      probability[at] = adds ? Math.max(probability[at], covered) : Math.min(probability[at], 1 - covered);
    }
  }
}

export class Brush {
  #frame;
  #mark;
  #begin;
  #stroke;
  #last = null; // where a stroke is, while the pointer is down
  #radius = 0.05;

  /**
   * @param {HTMLElement} frame As large as the picture; holds the mark.
   * @param {HTMLElement} mark A button, which shows the brush.
   * @param {() => void} begin Called before each stroke.
   * @param {(points: {x: number, y: number}[], radius: {x: number, y: number}) => void} stroke Called
   *   for each piece of it, as `paint` takes it.
   */
  constructor(frame, mark, begin, stroke) {
    [this.#frame, this.#mark, this.#begin, this.#stroke] = [frame, mark, begin, stroke];
    frame.addEventListener("pointerdown", (event) => {
      if (!this.isOn || event.button) return;
      event.preventDefault(); // no selection
      frame.setPointerCapture(event.pointerId);
      this.#start(pointIn(frame, event));
    });
    frame.addEventListener("pointermove", (event) => {
      if (!this.isOn) return;
      const point = pointIn(frame, event);
      this.#put(point);
      if (!this.#last) return;
      this.#stroke([this.#last, point], this.#radii());
      this.#last = point;
    });
    for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => (this.#last = null));
    mark.addEventListener("keydown", (event) => {
      const point = movedBy(event, mark, frame);
      if (!point && event.key !== " " && event.key !== "Enter") return;
      event.preventDefault(); // no scrolling
      if (point) return this.#put(point);
      this.#start(pointOf(mark));
      this.#last = null;
    });
  }

  get isOn() {
    return !this.#mark.hidden;
  }

  /** Shows the brush in the middle, or hides it. */
  toggle(on) {
    this.#mark.hidden = !on;
    this.#last = null;
    this.#put({ x: 0.5, y: 0.5 });
  }

  /** @param {number} radius In 0..1 of the picture's shorter side. */
  set radius(radius) {
    this.#radius = radius;
    this.#put(pointOf(this.#mark));
  }

  #start(point) {
    this.#begin();
    this.#put(point);
    this.#last = point;
    this.#stroke([point, point], this.#radii());
  }

  #radii() {
    const { clientWidth: width, clientHeight: height } = this.#frame;
    const pixels = this.#radius * Math.min(width, height);
    return { x: pixels / width, y: pixels / height };
  }

  #put({ x, y }) {
    const inside = (part) => Math.min(1, Math.max(0, part));
    const place = { "--x": inside(x), "--y": inside(y), "--brush": 2 * this.#radii().x };
    for (const [name, value] of Object.entries(place)) this.#mark.style.setProperty(name, value);
    const percent = (part) => `${(100 * inside(part)).toFixed(0)} %`;
    this.#mark.ariaLabel = `Brush: ${percent(x)} from the left, ${percent(y)} from the top; arrow keys move it, Space paints`;
  }
}
