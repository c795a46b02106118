// Frames of a camera through the model, as fast as both go.

const IN_FLIGHT = 2; // one being computed, one waiting, so that the worker never does
const MEASURED_MS = 1000;

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
   * @param {import("./model.js").Model} model
   * @param {(result: object, figures: {framesPerSecond: number}) => void} show Called for each frame.
   */
  async run(model, show) {
    let inFlight = 0;
    let failure = null;
    const shownAt = [];
    while (this.isOn && !failure) {
      await this.#nextFrame();
      if (!this.isOn || inFlight >= IN_FLIGHT) continue;
      inFlight++;
      createImageBitmap(this.#video)
        .then((frame) => model.segment(frame))
        .then((result) => {
          const now = performance.now();
          shownAt.push(now);
          while (now - shownAt[0] > MEASURED_MS) shownAt.shift();
          const framesPerSecond = (1000 * (shownAt.length - 1)) / (now - shownAt[0] || Infinity);
          if (this.isOn) show(result, { framesPerSecond });
        })
        .catch((error) => (failure = error))
        .finally(() => inFlight--);
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
