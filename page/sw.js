// A service worker that adds headers to what the host sends. Browsers allow threads only to pages with the two
// Cross-Origin headers, which most static hosts cannot be told to send; without this file the page runs on one thread.

const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  // A worker does not see the page's own policy, so it is given here too: no other host, whatever the code says.
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; " +
    "img-src 'self' blob: data:; connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'",
};
const WITHOUT_BODY = [101, 204, 205, 304];

addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  if (new URL(event.request.url).origin === location.origin) event.respondWith(withHeaders(event.request));
});

async function withHeaders(request) {
  const response = await fetch(request);
  if (request.mode === "navigate" && (await fetch("page.json", { method: "HEAD", cache: "no-store" })).status === 404) {
    await registration.unregister(); // another site has this address now
    return response;
  }
  if (response.type === "opaqueredirect" || WITHOUT_BODY.includes(response.status)) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
