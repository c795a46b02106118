// The page's side of worker.js.

/** Height and width of the network's input, pixels. */
export const SIZE = 256;
/** The bundled model's own threshold. */
export const THRESHOLD = 0.5;

export class Model {
  #worker;
  #waiting = new Map();
  #lastId = 0;

  /** @param {(progress: {loaded: number, total: number | null}) => void} onProgress Bytes. */
  constructor(onProgress) {
    this.#worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.#worker.addEventListener("message", ({ data }) => {
      if (data.progress) return onProgress(data.progress);
      const { resolve, reject } = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      return "error" in data ? reject(new Error(data.error)) : resolve(data.result);
    });
    this.#worker.addEventListener("error", (event) => {
      const reason = new Error(event.message || "the worker could not be started");
      for (const { reject } of this.#waiting.values()) reject(reason);
      this.#waiting.clear();
    });
  }

  /** @returns {Promise<{threads: number, bytes: number, inferMs: number}>} What runs, and its median time. */
  load() {
    return this.#ask({ kind: "load" });
  }

  /**
   * @param {Blob | ImageBitmap} source A picture file, or a frame, which is used up.
   * @param {boolean} giveBack Whether the decoded picture is wanted.
   * @returns {Promise<{probability: Float32Array, height, width, prepareMs, inferMs, bitmap?}>}
   */
  segment(source, giveBack = false) {
    return this.#ask({ kind: "segment", source, giveBack }, source instanceof Blob ? [] : [source]);
  }

  #ask(request, transfer = []) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, ...request }, transfer);
    });
  }
}
