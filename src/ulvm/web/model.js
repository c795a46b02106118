// The page's side of worker.js.

/** The bundled model's own threshold. */
export const THRESHOLD = 0.5;

/** What the worker needs of a result. */
const mapOf = ({ probability, height, width }) => ({ probability, height, width });

class Model {
  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #lastId = 0;

  constructor() {
    this.#worker.addEventListener("message", ({ data }) => {
      const { resolve, reject, show } = this.#waiting.get(data.id);
      if (data.preview) return show(data.preview);
      this.#waiting.delete(data.id);
      return "error" in data ? reject(new Error(data.error)) : resolve(data.result);
    });
    this.#worker.addEventListener("error", (event) => {
      const reason = new Error(event.message || "the worker could not be started");
      for (const { reject } of this.#waiting.values()) reject(reason);
      this.#waiting.clear();
    });
    /** Fulfilled once the network is there. */
    this.loaded = this.#ask("load");
    this.loaded.catch(() => {}); // for whoever waits for it
  }

  /**
   * @param {Blob} file A picture.
   * @param {(preview: {bitmap: ImageBitmap, height: number, width: number}) => void} show Called
   *   first, with the picture at the screen's size and its own size.
   * @returns {Promise<{probability: Float32Array, picture: Uint8Array, height: number, width: number, ms: number}>}
   */
  outline(file, show) {
    return this.#ask("outline", { file }, [], show);
  }

  /**
   * What a threshold makes of a result. `raw` of the result is the network's own probability from then on.
   *
   * @returns {Promise<object>} To be put into the result: `probability` without specks and holes,
   *   `quality` and `warnings` as of quality.js.
   */
  async review(result, threshold) {
    result.raw ??= result.probability;
    const { picture, raw: probability } = result;
    const { cleaned, ...rest } = await this.#ask("review", { picture, probability, threshold });
    return { probability: cleaned, ...rest };
  }

  /**
   * @param {VideoFrame | ImageBitmap} frame It is used up.
   * @returns {Promise<{curves: Float32Array[], fraction: number, ms: number}>}
   */
  outlineFrame(frame, threshold) {
    return this.#ask("outlineFrame", { frame, threshold }, [frame]);
  }

  /** @returns {Promise<number>} The mask's share of the picture, 0..1, at the picture's size. */
  measure(result, threshold) {
    return this.#ask("measure", { result: mapOf(result), threshold });
  }

  /** @returns {Promise<Blob>} A PNG at the picture's size: 0 and 255. */
  maskFile(result, threshold) {
    return this.#ask("maskFile", { result: mapOf(result), threshold });
  }

  /** @returns {Promise<Blob>} A PNG at the picture's size, outlined and tinted. */
  overlayFile(file, result, { threshold, opacity }) {
    return this.#ask("overlayFile", { file, result: mapOf(result), threshold, opacity });
  }

  #ask(kind, request = {}, transfer = [], show = null) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, show });
      this.#worker.postMessage({ id, kind, ...request }, transfer);
    });
  }
}

/** Starts to load with this module. */
export const model = new Model();
