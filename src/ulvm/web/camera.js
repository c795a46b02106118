// Frames of a camera through the network, as fast as both go.

import { SIZE } from "./model.js";

const MEASURED_MS = 1000;

/**
 * A frame at the network's size, shrunk by the browser: far quicker than resample.js, and nearly the
 * same. Browsers that know no such options give it whole, and the worker shrinks it.
 *
 * @param {CanvasImageSource} source
 * @returns {Promise<ImageBitmap>}
 */
export const takeFrame = (source) =>
  createImageBitmap(source, { resizeWidth: SIZE, resizeHeight: SIZE, resizeQuality: "medium" });

export class Camera {
  #video;
  #stream = null;

  /** @param {HTMLVideoElement} video Shows the stream. */
  constructor(video) {
    this.#video = video;
  }

  get isOn() {
    return this.#stream !== null;
  }

  /** Opens the camera at the back, where there is one. */
  async start() {
    if (!navigator.mediaDevices) {
      throw new Error("the camera is given to pages from https or this device only");
    }
    this.#stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 60 } },
    });
    this.#video.srcObject = this.#stream;
    await this.#video.play();
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.#video.srcObject = null;
  }

  /**
   * Until the camera is stopped. Frames that find all models busy are left out.
   *
   * @param {import("./model.js").Model[]} models Take frames in turn, each on a core of its own.
   * @param {(result: object, framesPerSecond: number) => void} show Called for each frame, in order.
   */
  async run(models, show) {
    const stream = this.#stream; // another one, if it is stopped and started meanwhile
    const isOn = () => stream && this.#stream === stream;
    const waiting = new Map(models.map((model) => [model, 0]));
    let inFlight = 0;
    let taken = 0;
    let shown = 0;
    let failure = null;
    const shownAt = [];
    while (isOn() && !failure) {
      await this.#nextFrame();
      // One more than there are models, so that none has to wait for a frame.
      if (!isOn() || inFlight > models.length) continue;
      const number = ++taken;
      const model = models.reduce((best, each) => (waiting.get(each) < waiting.get(best) ? each : best));
      waiting.set(model, waiting.get(model) + 1);
      inFlight++;
      const { videoHeight: height, videoWidth: width } = this.#video;
      takeFrame(this.#video)
        .then((frame) => model.segment(frame))
        .then((result) => {
          if (!isOn() || number < shown) return;
          shown = number;
          const now = performance.now();
          shownAt.push(now);
          while (now - shownAt[0] > MEASURED_MS) shownAt.shift();
          show({ ...result, height, width }, (1000 * (shownAt.length - 1)) / (now - shownAt[0] || Infinity));
        })
        .catch((error) => (failure = error))
        .finally(() => {
          waiting.set(model, waiting.get(model) - 1);
          inFlight--;
        });
    }
    if (failure) throw failure;
  }

  /** The current frame as a file. */
  async takePicture() {
    const { videoWidth, videoHeight } = this.#video;
    const canvas = new OffscreenCanvas(videoWidth, videoHeight);
    canvas.getContext("2d").drawImage(this.#video, 0, 0);
    return new File([await canvas.convertToBlob({ type: "image/png" })], "camera.png");
  }

  #nextFrame() {
    return new Promise((resolve) => {
      if (!this.#video.requestVideoFrameCallback) return requestAnimationFrame(resolve);
      this.#video.requestVideoFrameCallback(resolve);
      setTimeout(resolve, 500); // a stopped stream gives no more frames
    });
  }
}
