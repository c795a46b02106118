// Keeps the page's own files, so that it works without a network. It answers for nothing else.

const CACHE = "ulvm";
const FILES = [
  "./", "style.css", "icon.svg", "page.js", "model.js", "worker.js", "resample.js", "outline.js",
  "drawing.js", "camera.js", "zip.js", "model.onnx", "example.jpg", "runtime/ort.wasm.min.mjs",
  "runtime/ort-wasm-simd-threaded.mjs", "runtime/ort-wasm-simd-threaded.wasm",
];
const URLS = new Set(FILES.map((file) => new URL(file, self.location).href));

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)));
  self.skipWaiting();
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && URLS.has(event.request.url)) {
    event.respondWith(answer(event.request));
  }
});

/** The network's answer when there is one, so that an update is seen at once; else the kept one. */
async function answer(request) {
  const cache = await caches.open(CACHE);
  let response;
  try {
    response = await fetch(request);
  } catch {
    response = await cache.match(request, { ignoreVary: true });
    return response ? isolate(response) : Response.error();
  }
  if (response.ok) await cache.put(request, response.clone());
  return isolate(response);
}

/** With the headers that threads ask for, which a plain static host does not send. */
function isolate(response) {
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}
