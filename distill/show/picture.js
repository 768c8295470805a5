// The browser's half of `widgets.Picture`: shows a picture, and lets a reader choose one of its pixels.

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function render({ model, el }) {
  const box = document.createElement("div");
  const image = document.createElement("img");
  const wipe = document.createElement("div");
  const frame = document.createElement("div");
  box.className = "distill-picture";
  wipe.className = "distill-wipe";
  frame.className = "distill-pixel";
  box.tabIndex = 0;
  box.setAttribute("role", "application");
  box.append(image, wipe, frame);
  // A live region is read aloud only if it was there before its text changes.
  const said = document.createElement("div");
  said.className = "distill-said";
  said.setAttribute("role", "status");
  el.append(box, said);

  function draw() {
    const [width, height] = model.get("size");
    const [x, y] = model.get("pixel");
    image.src = model.get("source");
    image.alt = model.get("alt");
    image.draggable = false;
    box.setAttribute("aria-label", `${model.get("alt")}. Arrow keys move the chosen pixel, now ${x}, ${y}.`);
    wipe.style.left = `${model.get("wipe")}%`;
    frame.style.left = `${(100 * x) / width}%`;
    frame.style.top = `${(100 * y) / height}%`;
    frame.style.width = `${100 / width}%`;
    frame.style.height = `${100 / height}%`;
    if (said.textContent !== model.get("said")) said.textContent = model.get("said");
    nameSliders();
  }

  // ipywidgets 8 gives the handles of its sliders no name; theirs is the text beside them.
  function nameSliders() {
    for (const slider of document.querySelectorAll(".widget-slider")) {
      const name = slider.querySelector("label")?.textContent;
      if (name) slider.querySelector("[role=slider]")?.setAttribute("aria-label", name);
    }
  }

  function choose(x, y) {
    const [width, height] = model.get("size");
    const inside = (value, end) => Math.min(Math.max(value, 0), end - 1);
    model.set("pixel", [inside(x, width), inside(y, height)]);
    model.save_changes();
  }

  box.addEventListener("click", (event) => {
    const [width, height] = model.get("size");
    const place = image.getBoundingClientRect();
    choose(
      Math.floor(((event.clientX - place.left) / place.width) * width),
      Math.floor(((event.clientY - place.top) / place.height) * height),
    );
    box.focus();
  });

  box.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own keys, such as back
    const [x, y] = model.get("pixel");
    const far = event.shiftKey ? 8 : 1;
    choose(x + far * step[0], y + far * step[1]);
    event.preventDefault(); // the page must not scroll
    event.stopPropagation(); // and the notebook must not go to another cell
  });

  for (const name of ["source", "alt", "size", "pixel", "wipe", "said"]) model.on(`change:${name}`, draw);
  draw();
  const waiting = setTimeout(nameSliders, 1000); // they may be drawn after the picture
  return () => clearTimeout(waiting);
}

export default { render };
