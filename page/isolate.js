// Threads need a page that is isolated from other sites; sw.js makes it one, from the second load on.

/** Register the service worker and load the page again, once; without effect where a browser has none. */
export async function isolate() {
  if (crossOriginIsolated || !isSecureContext || !navigator.serviceWorker || tried()) return;
  try {
    await navigator.serviceWorker.register("sw.js");
    await Promise.race([navigator.serviceWorker.ready, after(3000)]);
  } catch {
    return; // one thread, then
  }
  location.reload();
  await new Promise(() => {}); // nothing more happens before the new page
}

/** Whether this tab has been here before: a page that stays as it was must not load for ever. */
function tried() {
  try {
    const before = sessionStorage.getItem("isolate");
    sessionStorage.setItem("isolate", "tried");
    return before !== null;
  } catch {
    return true; // no storage, no second try
  }
}

function after(milliseconds) {
  return new Promise((_, reject) => setTimeout(reject, milliseconds));
}
