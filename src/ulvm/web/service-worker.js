// Keeps the page's own files, so that it works without a network. It answers for nothing else.

const FOLDER = new URL("./", self.location);
const CACHE = `ulvm ${FOLDER.pathname}`; // a host's other copies of the page keep their own
const ENGINE = new URL(self.location).searchParams.get("engine"); // the build that this browser takes
const FILES = [
  "./", "style.css", "icon.svg", "page.js", "model.js", "worker.js", "engine.js", "outline.js", "drawing.js",
  "camera.js", "ruler.js", "brush.js", "png16.js", "webp.js", "zip.js", "quality.js", "quality.json", ENGINE, "model.safetensors", "about.html",
  "about.js", "MODEL_CARD.md", "manifest.webmanifest", "linked.js", "gallery.html", "gallery.css", "gallery.js",
];
// Examples and the icons for phones are kept once they were asked for.
const ASKED = ["example.jpg", "icon-192.png", "icon-512.png", "icon-maskable.png"];
const URLS = new Set([...FILES, ...ASKED].map((file) => new URL(file, FOLDER).href));
const GALLERY = new URL("gallery/", FOLDER).href;
const isOurs = (url) => URLS.has(url) || url.startsWith(GALLERY);
/** The address under which a file is kept, whatever a link adds to it. */
const plain = (url) => url.replace(/[?#].*/s, "").replace(/\/index\.html$/, "/");

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)));
  self.skipWaiting();
});

self.addEventListener("activate", (event) => event.waitUntil(tidy().then(() => self.clients.claim())));

/** Drops files of earlier versions. */
async function tidy() {
  await caches.delete("ulvm"); // their cache
  const cache = await caches.open(CACHE);
  for (const { url } of await cache.keys()) if (!isOurs(url)) await cache.delete(url);
}

self.addEventListener("fetch", (event) => {
  const url = plain(event.request.url);
  if (event.request.method === "GET" && isOurs(url)) event.respondWith(answer(event.request, url));
});

/** The network's answer when there is one, so that an update is seen at once; else the kept one. */
async function answer(request, url) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(url, response.clone()).catch(() => {}); // a full disk: what is kept stays
    return response;
  } catch {
    return (await cache.match(url, { ignoreVary: true })) ?? Response.error();
  }
}
