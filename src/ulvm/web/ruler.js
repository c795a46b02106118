// Two marks over the picture, moved by pointer or arrow keys, and how far they are apart.

const STEP = 10; // screen pixels with Shift held, else one

export class Ruler {
  #frame;
  #marks;
  #changed;
  #held = null;

  /**
   * @param {HTMLElement} frame As large as the picture; holds the marks.
   * @param {HTMLElement[]} marks Two buttons.
   * @param {() => void} changed Called when a mark has moved.
   */
  constructor(frame, marks, changed) {
    [this.#frame, this.#marks, this.#changed] = [frame, marks, changed];
    frame.addEventListener("pointerdown", (event) => {
      if (!this.isOn) return;
      event.preventDefault(); // no focus, no selection
      this.#held = this.#nearest(this.#place(event));
      this.#held.focus({ preventScroll: true });
      frame.setPointerCapture(event.pointerId);
      this.#move(this.#held, this.#place(event));
    });
    frame.addEventListener("pointermove", (event) => this.#held && this.#move(this.#held, this.#place(event)));
    for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => (this.#held = null));
    for (const mark of marks) {
      mark.addEventListener("keydown", (event) => {
        const [dx, dy] = DIRECTIONS[event.key] ?? [0, 0];
        if (!dx && !dy) return;
        event.preventDefault(); // no scrolling
        const step = event.shiftKey ? STEP : 1;
        const { x, y } = pointOf(mark);
        this.#move(mark, { x: x + (dx * step) / frame.clientWidth, y: y + (dy * step) / frame.clientHeight });
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

  #place({ clientX, clientY }) {
    const box = this.#frame.getBoundingClientRect();
    return { x: (clientX - box.left) / box.width, y: (clientY - box.top) / box.height };
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

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const pointOf = (mark) => ({
  x: Number(mark.style.getPropertyValue("--x")),
  y: Number(mark.style.getPropertyValue("--y")),
});
