// Frames of a camera through the network, as fast as both go.

const MEASURED_MS = 1000;
const IN_FLIGHT = 2; // the network works on one while the next one is fetched

/** The current frame: as the camera gave it where the browser can, for that takes no time. */
const takeFrame = (video) =>
  typeof VideoFrame === "function" ? new VideoFrame(video) : createImageBitmap(video);

const REASONS = {
  NotAllowedError: "The browser was told not to give the camera to this page. Allow it beside the address and try again.",
  NotFoundError: "No camera was found. Connect one, or choose a picture.",
  NotReadableError: "The camera is in use by another program. Close that and try again.",
};

/** @returns {string} For people: why there is no camera, and what to do. */
export const whyNoCamera = (error) => REASONS[error.name] ?? `The camera cannot be used: ${error.message}.`;

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
      throw new Error("browsers give it to pages from https or this device only");
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
   * Until the camera is stopped. Frames that come while two are on their way are left out.
   *
   * @param {(frame: VideoFrame | ImageBitmap) => Promise<object>} outline
   * @param {(result: object, framesPerSecond: number) => void} show Called for each frame, in order.
   */
  async run(outline, show) {
    const stream = this.#stream; // another one, if it is stopped and started meanwhile
    const isOn = () => stream && this.#stream === stream;
    let inFlight = 0;
    let failure = null;
    const shownAt = [];
    const handle = async () => {
      const { videoHeight: height, videoWidth: width } = this.#video;
      const result = await outline(await takeFrame(this.#video));
      if (!isOn()) return;
      const now = performance.now();
      shownAt.push(now);
      while (now - shownAt[0] > MEASURED_MS) shownAt.shift();
      show({ ...result, height, width }, (1000 * (shownAt.length - 1)) / (now - shownAt[0] || Infinity));
    };
    while (isOn() && !failure) {
      await this.#nextFrame();
      if (isOn() && !stream.active) throw new Error("it was unplugged or taken by another program");
      if (!isOn() || inFlight === IN_FLIGHT) continue;
      inFlight++;
      handle()
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
