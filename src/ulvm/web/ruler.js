// Two marks over the picture, moved by pointer or arrow keys, and how far they are apart.

const STEP = 10; // screen pixels with Shift held, else one
const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Where the pointer is, in 0..1 of the frame's width and height. */
export function pointIn(frame, { clientX, clientY }) {
  const box = frame.getBoundingClientRect();
  return { x: (clientX - box.left) / box.width, y: (clientY - box.top) / box.height };
}

/** Where a mark over the frame is. */
export const pointOf = (mark) => ({
  x: Number(mark.style.getPropertyValue("--x")),
  y: Number(mark.style.getPropertyValue("--y")),
});

/** Where an arrow key moves a mark to; null for other keys. */
export function movedBy({ key, shiftKey }, mark, frame) {
  if (!DIRECTIONS[key]) return null;
  const [dx, dy] = DIRECTIONS[key].map((each) => each * (shiftKey ? STEP : 1));
  const { x, y } = pointOf(mark);
  return { x: x + dx / frame.clientWidth, y: y + dy / frame.clientHeight };
}

export class Ruler {
  #marks;
  #changed;
  #held = null;

  /**
   * @param {HTMLElement} frame As large as the picture; holds the marks.
   * @param {HTMLElement[]} marks Two buttons.
   * @param {() => void} changed Called when a mark has moved.
   */
  constructor(frame, marks, changed) {
    [this.#marks, this.#changed] = [marks, changed];
    frame.addEventListener("pointerdown", (event) => {
      if (!this.isOn) return;
      event.preventDefault(); // no focus, no selection
      this.#held = this.#nearest(pointIn(frame, event));
      this.#held.focus({ preventScroll: true });
      frame.setPointerCapture(event.pointerId);
      this.#move(this.#held, pointIn(frame, event));
    });
    frame.addEventListener("pointermove", (event) => this.#held && this.#move(this.#held, pointIn(frame, event)));
    for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => (this.#held = null));
    for (const mark of marks) {
      mark.addEventListener("keydown", (event) => {
        const point = movedBy(event, mark, frame);
        if (!point) return;
        event.preventDefault(); // no scrolling
        this.#move(mark, point);
      });
    }
  }

  get isOn() {
    return !this.#marks[0].hidden;
  }

  /** Shows the marks side by side, or hides them. */
  toggle(on) {
    for (const [i, mark] of this.#marks.entries()) {
      mark.hidden = !on;
      this.#put(mark, { x: 0.25 + 0.5 * i, y: 0.5 });
    }
  }

  /** @returns {{x: number, y: number}[]} Both marks, in 0..1 of width and height. */
  get points() {
    return this.#marks.map(pointOf);
  }

  /** @returns {number} How far the marks are apart in a picture of this size, pixels. */
  distance({ height, width }) {
    const [a, b] = this.points;
    return Math.hypot((a.x - b.x) * width, (a.y - b.y) * height);
  }

  #nearest(point) {
    const away = (mark) => Math.hypot(pointOf(mark).x - point.x, pointOf(mark).y - point.y);
    const [first, second] = this.#marks;
    return away(first) <= away(second) ? first : second;
  }

  #move(mark, point) {
    this.#put(mark, point);
    this.#changed();
  }

  #put(mark, { x, y }) {
    for (const [name, value] of [["x", x], ["y", y]]) {
      mark.style.setProperty(`--${name}`, Math.min(1, Math.max(0, value)));
    }
    const at = pointOf(mark);
    const percent = (part) => `${(100 * part).toFixed(1)} %`;
    mark.ariaLabel = `${mark.title}: ${percent(at.x)} from the left, ${percent(at.y)} from the top; arrow keys move it`;
  }
}
