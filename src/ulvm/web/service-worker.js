// Keeps the page's own files, so that it works without a network. It answers for nothing else.

const CACHE = "ulvm";
const ENGINE = new URL(self.location).searchParams.get("engine"); // the build that this browser takes
const FILES = [
  "./", "style.css", "icon.svg", "page.js", "model.js", "worker.js", "engine.js", "outline.js", "drawing.js",
  "camera.js", "ruler.js", "brush.js", "png16.js", "zip.js", "quality.js", "quality.json", ENGINE, "model.safetensors", "about.html",
  "about.js", "MODEL_CARD.md",
];
// The example is kept once it was asked for.
const URLS = new Set([...FILES, "example.jpg"].map((file) => new URL(file, self.location).href));

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)));
  self.skipWaiting();
});

self.addEventListener("activate", (event) => event.waitUntil(tidy().then(() => self.clients.claim())));

/** Drops files of earlier versions. */
async function tidy() {
  const cache = await caches.open(CACHE);
  for (const { url } of await cache.keys()) if (!URLS.has(url)) await cache.delete(url);
}

self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && URLS.has(event.request.url)) {
    event.respondWith(answer(event.request));
  }
});

/** The network's answer when there is one, so that an update is seen at once; else the kept one. */
async function answer(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch {
    return (await cache.match(request, { ignoreVary: true })) ?? Response.error();
  }
}
