// The page: where images come from, what the networks say of them, and what a reader sees of it.

import { Drawing } from "./drawing.js";
import { Problem, fetched, fitted, read } from "./images.js";
import { isolate } from "./isolate.js";
import { Networks } from "./networks.js";
import { agreement, mask, probabilities, shares } from "./numbers.js";
import { Picture, coloured, differences, element, inWords, wiped } from "./pictures.js";

const $ = (id) => document.getElementById(id);
const ROWS = 6; // classes in the table of probabilities
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** What is shown: the image, its labels where they are known, and by network its logits, mask and milliseconds. */
const state = { source: "scene", scene: 0, image: null, labels: null, answers: {}, pixel: [32, 32], picture: null };
let page; // page.json: classes, palette, networks, scenes, shapes, colours, temperatures
let networks, drawing;
let loaded; // resolves when the networks are there
let asked = 0; // images so far
let attempts = 0; // that are not finished
let asking = false; // the browser for its camera
let choices = 0; // of a reader; a camera's images are none
const figures = {};

main().catch((error) => {
  tell("The page could not start.");
  $("progress").hidden = true;
  complain(error);
});

async function main() {
  await isolate();
  const response = await fetch("page.json");
  if (!response.ok) throw new Error(`page.json is missing on this host (${response.status})`);
  page = await response.json();
  buildControls();
  fromHash();
  loaded = load();
  await loaded;
  await showSource();
}

// ------------------------------------------------------------------------------------------------- what it says

function tell(text) {
  $("status").textContent = text;
}

/** One sentence about a mistake, until something else is chosen. */
function complain(error) {
  const reason = `${error.message ?? error}`.replace(/\.+$/, "");
  $("problem").textContent = error instanceof Problem ? error.message : `This did not work: ${reason}.`;
  $("problem").hidden = false;
}

/** Do what a reader asked for, and say so where it fails. */
async function attempt(action) {
  $("problem").hidden = true;
  setBusy(+1);
  try {
    await action();
  } catch (error) {
    complain(error);
  } finally {
    setBusy(-1);
  }
}

/** Tell screen readers whether the pictures are about to change. */
function setBusy(change) {
  attempts += change;
  document.querySelector("main").setAttribute("aria-busy", attempts > 0);
}

// ------------------------------------------------------------------------------------------------------ loading

async function load() {
  const begin = performance.now();
  const total = page.runtime.bytes + page.networks.reduce((sum, network) => sum + network.bytes, 0);
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  const progress = Object.assign($("progress"), { max: total, value: 0, hidden: false });
  const report = (bytes) => (progress.value += bytes);
  tell(`Loading ${megabytes(total)} MB: the networks, and what runs them`);
  networks = new Networks();
  await networks.start(page.runtime.file, report);
  await Promise.all(page.networks.map(({ name, file }) => networks.open(name, file, report)));
  progress.hidden = true;
  tell("");
  const seconds = ((performance.now() - begin) / 1000).toFixed(1);
  const threads = networks.threads === 1 ? "one thread" : `${networks.threads} threads`;
  $("engine").textContent =
    `onnxruntime-web ${page.runtime.version}, WebAssembly on ${threads}. ` +
    `${megabytes(total)} MB of networks and runtime, ready after ${seconds} s.`;
  document.documentElement.dataset.ready = seconds;
}

// ------------------------------------------------------------------------------------------------------- asking

/**
 * Show an image, and what every network says of it; a newer image takes the place of an unfinished one. `turn` is of
 * when it was asked for, where it had to be fetched first.
 */
async function show(image, labels = null, turn = ++asked) {
  const answers = {};
  await loaded;
  for (const { name } of page.networks) {
    await networks.idle();
    if (turn !== asked) return;
    const { logits, classes, milliseconds } = await networks.run(name, image);
    answers[name] = { logits, milliseconds, mask: mask(logits, classes) };
  }
  if (turn !== asked) return;
  Object.assign(state, { image, labels, answers });
  const inside = (value, end) => Math.min(Math.max(value, 0), end - 1);
  state.pixel = [inside(state.pixel[0], image.width), inside(state.pixel[1], image.height)];
  drawFigures();
  drawLayers();
  drawWipe();
  drawPixel();
  tell("");
  document.querySelector("main").dataset.shown = turn;
}

/** Labels or the teacher's mask: what errors are counted against. */
function truth() {
  return state.labels ?? state.answers[page.networks[0].name].mask;
}

// -------------------------------------------------------------------------------------------------------- masks

function drawFigures() {
  const { image, labels, answers } = state;
  figures.image.picture.show(image, `The image, ${image.width} × ${image.height} pixels`);
  figures.labels.figure.hidden = labels === null;
  if (labels) {
    const text = `Its labels: ${inWords(labels, page.classes)}`;
    figures.labels.picture.show(coloured(labels, image.width, page.palette), text);
  }
  for (const { name } of page.networks) {
    const { mask: found, milliseconds } = answers[name];
    const text = `Mask, ${name}: ${inWords(found, page.classes)}`;
    figures[name].picture.show(coloured(found, image.width, page.palette), text);
    figures[name].facts.textContent = `${milliseconds.toFixed(1)} ms${score(name, found)}`;
  }
  drawLegend();
}

function score(name, found) {
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  if (state.labels) return `, ${percent(agreement(found, state.labels))} right`;
  return name === page.networks[0].name ? "" : `, ${percent(agreement(found, truth()))} as the teacher`;
}

function drawLegend() {
  const masks = Object.values(state.answers).map((answer) => answer.mask);
  const present = new Set([...masks, state.labels ?? []].flatMap((labels) => shares(labels).map(([label]) => label)));
  $("legend").replaceChildren(
    ...[...present].sort((a, b) => a - b).map((label) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = `rgb(${page.palette[label]})`;
      return element("li", {}, swatch, page.classes[label]);
    }),
  );
}

// --------------------------------------------------------------------------------------------------------- wipe

/** The layers that can be wiped between: name, and a function that gives an ImageData. */
function layers() {
  const { image, labels, answers } = state;
  const all = new Map([["image", () => image]]);
  if (labels) all.set("labels", () => coloured(labels, image.width, page.palette));
  for (const { name } of page.networks) {
    all.set(name, () => coloured(answers[name].mask, image.width, page.palette));
  }
  for (const { name } of page.networks.slice(labels ? 0 : 1)) {
    all.set(`errors: ${name}`, () => differences(answers[name].mask, truth(), image.width));
  }
  return all;
}

/** The choices of both sides, which depend on whether there are labels. */
function drawLayers() {
  const names = [...layers().keys()];
  const usual = { left: page.networks[0].name, right: page.networks[1].name };
  for (const side of ["left", "right"]) {
    const chosen = $(side).value;
    if (names.length === $(side).options.length) continue;
    $(side).replaceChildren(...names.map((name) => element("option", { value: name, textContent: name })));
    $(side).value = names.includes(chosen) ? chosen : usual[side];
  }
}

function drawWipe() {
  if (!state.image) return;
  const all = layers();
  const [left, right] = [$("left").value, $("right").value];
  const border = $("wipe").value / 100;
  const picture = wiped(state.image, all.get(left)(), all.get(right)(), border, $("opacity").value / 100);
  figures.wipe.picture.show(picture, `${left} to the left of the border, ${right} to the right`);
  figures.wipe.border.style.left = `${100 * border}%`;
}

// -------------------------------------------------------------------------------------------------------- pixel

function choose(x, y) {
  if (!state.image) return;
  const inside = (value, end) => Math.min(Math.max(value, 0), end - 1);
  state.pixel = [inside(x, state.image.width), inside(y, state.image.height)];
  drawPixel();
}

function drawPixel() {
  for (const { picture } of Object.values(figures)) picture.mark(state.pixel);
  const temperature = page.temperatures[$("temperature").value];
  $("temperature-value").textContent = temperature;
  $("temperature").setAttribute("aria-valuetext", `temperature ${temperature}`);
  if (state.image) drawProbabilities(temperature);
  writeHash(temperature);
}

function drawProbabilities(temperature) {
  const [x, y] = state.pixel;
  const place = y * state.image.width + x;
  const at = (t) =>
    page.networks.map(({ name }) => probabilities(state.answers[name].logits, page.classes.length, place, t));
  const sums = at(1).reduce((a, b) => a.map((value, i) => value + b[i])); // so that rows stay while T moves
  const order = sums.map((_, label) => label).sort((a, b) => sums[b] - sums[a]).slice(0, ROWS);
  const values = at(temperature);
  const named = page.classes[state.labels?.[place]];
  const said = values.map((list, i) => {
    const best = list.indexOf(Math.max(...list));
    return `${page.networks[i].name}: ${page.classes[best]} ${list[best].toFixed(2)}`;
  });
  const labelled = state.labels ? `, labelled ${named ?? "void"}` : "";
  $("sentence").textContent = `Pixel (${x}, ${y})${labelled}. ${said.join("; ")}.`;
  const rest = values.map((list) => 1 - order.reduce((sum, label) => sum + list[label], 0));
  $("probabilities").replaceChildren(
    row("th", "class", page.networks.map(({ name }) => name)),
    ...order.map((label) => row("td", page.classes[label], values.map((list) => bar(list[label])))),
    row("td", "all others", rest.map(bar)),
  );
}

function row(kind, name, cells) {
  const head = element("th", { scope: kind === "th" ? "col" : "row" }, name);
  return element("tr", {}, head, ...cells.map((cell) => element(kind, kind === "th" ? { scope: "col" } : {}, cell)));
}

/** A probability as a number above a bar. */
function bar(value) {
  const length = element("span", { className: "bar" });
  length.style.width = `${Math.max(100 * value, 0).toFixed(1)}%`;
  return element("span", { className: "value" }, value.toFixed(3).replace("-0.000", "0.000"), length);
}

// ------------------------------------------------------------------------------------------------ where from

/** The controls of the chosen source, and its image. */
function showSource() {
  choices += 1;
  const source = document.querySelector("[name=source]:checked").value;
  state.source = source;
  for (const part of document.querySelectorAll("[data-source]")) part.hidden = part.dataset.source !== source;
  $("side-control").hidden = source === "scene";
  if (source !== "camera") stopCamera();
  return attempt(async () => {
    if (source === "scene") await showScene();
    if (source === "draw") await showDrawing();
    if (source === "photo" && state.picture) await showPhotograph();
  });
}

async function showScene() {
  const turn = ++asked;
  const { image, labels } = page.scenes[state.scene];
  // Labels come as bytes: browsers that guard against fingerprints put noise into what a canvas gives back.
  const [picture, bytes] = await Promise.all([fetched(image), fetch(labels).then((answer) => answer.arrayBuffer())]);
  await show(picture, new Uint8Array(bytes), turn);
}

function showDrawing() {
  return drawing.begun ? show(fitted($("board"), side())) : startFromScene();
}

/** The chosen scene as the ground to draw on; it is shown as every change is. */
async function startFromScene() {
  const turn = ++asked;
  const ground = await fetched(page.scenes[state.scene].image);
  if (turn === asked) drawing.start(ground);
}

function showPhotograph() {
  return show(fitted(state.picture, side()));
}

/** A file that was chosen, dropped or pasted. */
function take(file) {
  return attempt(async () => {
    const choice = ++choices;
    const picture = await read(file).catch((error) => {
      if (choice === choices) throw error;
    });
    if (choice !== choices) return; // something else was chosen meanwhile
    stopCamera();
    state.picture = picture;
    document.querySelector("[name=source][value=photo]").checked = true;
    await showSource();
  });
}

function side() {
  return Number($("side").value);
}

// ------------------------------------------------------------------------------------------------------- camera

/** Show one picture of the camera after the other, until it is stopped. */
async function startCamera() {
  if (asking) return;
  asking = true; // the button stays enabled: a disabled one loses the focus
  $("problem").hidden = true;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    if (state.source !== "camera") return; // chosen while the browser was asking
    throw new Problem(
      error.name === "NotFoundError"
        ? "No camera was found; load a photograph instead."
        : `The browser gave no camera to this page (${error.name}); allow it there, or load a photograph.`,
    );
  } finally {
    asking = false;
  }
  $("video").srcObject = stream;
  if (state.source !== "camera") return stopCamera();
  const running = () => $("video").srcObject === stream; // and not that of a later start
  stream.getVideoTracks()[0].addEventListener("ended", () => {
    if (!running()) return;
    stopCamera();
    complain(new Problem("The camera gives no more pictures; connect it, and start it again."));
  });
  $("camera").textContent = "Stop the camera";
  $("sentence").setAttribute("aria-live", "off"); // else each picture would be read aloud
  try {
    await $("video").play();
    while (running()) {
      await show(fitted($("video"), side()));
      await new Promise(requestAnimationFrame);
    }
  } catch (error) {
    if (!running()) return; // it was stopped meanwhile
    stopCamera();
    throw error;
  }
}

function stopCamera() {
  for (const track of $("video").srcObject?.getTracks() ?? []) track.stop();
  $("video").srcObject = null;
  $("camera").textContent = "Start the camera";
  $("sentence").removeAttribute("aria-live");
}

// --------------------------------------------------------------------------------------------- address of a view

function fromHash() {
  const values = new URLSearchParams(location.hash.slice(1));
  const number = (name, end, otherwise) => {
    const value = Number.parseInt(values.get(name), 10);
    return value >= 0 && value < end ? value : otherwise;
  };
  state.scene = number("scene", page.scenes.length, state.scene);
  state.pixel = [number("x", 1024, state.pixel[0]), number("y", 1024, state.pixel[1])];
  const temperature = page.temperatures.indexOf(Number(values.get("T")));
  $("temperature").value = temperature < 0 ? page.temperatures.indexOf(1) : temperature;
  document.querySelectorAll("[name=scene]")[state.scene].checked = true;
}

function writeHash(temperature) {
  const [x, y] = state.pixel;
  const hash = `#scene=${state.scene}&x=${x}&y=${y}&T=${temperature}`;
  if (hash === location.hash) return; // browsers allow so many changes in a while, and a camera has many images
  try {
    history.replaceState(null, "", hash);
  } catch {
    // too many: the address stays behind until the next change
  }
}

// ----------------------------------------------------------------------------------------------------- building

function buildControls() {
  for (const name of ["image", "labels"]) addFigure(name, element("strong", {}, name));
  for (const { name, parameters } of page.networks) {
    addFigure(name, element("strong", {}, name), ` ${(parameters / 1e6).toFixed(1)} million parameters`);
  }
  buildWipe();
  buildScenes();
  buildBoard();
  $("temperature").max = page.temperatures.length - 1;
  $("temperature").addEventListener("input", drawPixel);
  for (const id of ["wipe", "left", "right", "opacity"]) $(id).addEventListener("input", drawWipe);
  $("sources").addEventListener("change", showSource);
  $("side").addEventListener("change", showSource);
  $("camera-source").hidden = !navigator.mediaDevices?.getUserMedia;
  $("camera").addEventListener("click", () => ($("video").srcObject ? stopCamera() : startCamera().catch(complain)));
  $("file").addEventListener("click", ({ target }) => (target.value = "")); // the same file may be chosen again
  $("file").addEventListener("change", ({ target }) => target.files[0] && take(target.files[0]));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => event.clipboardData.files[0] && take(event.clipboardData.files[0]));
  addEventListener("hashchange", () => {
    fromHash();
    document.querySelector("[name=source][value=scene]").checked = true;
    showSource();
  });
}

function addFigure(name, ...caption) {
  const picture = new Picture(choose);
  const facts = element("span", { className: "facts" });
  const figure = element("figure", {}, picture.frame, element("figcaption", {}, ...caption, facts));
  figures[name] = { picture, facts, figure };
  $("figures").append(figure);
}

/** The picture to be wiped is the one that the keyboard reaches. */
function buildWipe() {
  const picture = new Picture(choose);
  const border = element("div", { className: "border" });
  figures.wipe = { picture, border };
  picture.frame.append(border);
  $("wiped").replaceWith(picture.frame);
  picture.canvas.tabIndex = 0;
  picture.canvas.setAttribute("role", "application");
  picture.canvas.setAttribute("aria-roledescription", "picture whose pixels the arrow keys choose");
  picture.canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own keys, such as back
    event.preventDefault();
    choose(state.pixel[0] + step[0], state.pixel[1] + step[1]);
  });
}

function buildScenes() {
  for (const [index, { image, classes }] of page.scenes.entries()) {
    const input = element("input", { type: "radio", name: "scene", value: index });
    const picture = element("img", { src: image, alt: `Scene ${index + 1}: ${classes.join(", ")}`, width: 64, height: 64 });
    $("scenes").append(element("label", { title: classes.join(", ") }, input, picture));
  }
  $("scenes").addEventListener("change", ({ target }) => {
    choices += 1;
    state.scene = Number(target.value);
    attempt(showScene);
  });
}

function buildBoard() {
  const tools = ["brush", ...Object.keys(page.shapes)];
  $("tool").append(...tools.map((name) => element("option", { value: name, textContent: name })));
  $("tool").value = "heart";
  for (const [name, colour] of Object.entries(page.colours)) {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = colour;
    const input = element("input", { type: "radio", name: "colour", value: colour });
    $("colours").append(element("label", { title: name }, input, swatch, element("span", { className: "unseen" }, name)));
  }
  document.querySelector("[name=colour]").checked = true;
  const settings = () => ({
    tool: $("tool").value,
    colour: document.querySelector("[name=colour]:checked").value,
    size: Number($("brush-size").value),
  });
  const changed = () => attempt(() => show(fitted($("board"), side())));
  drawing = new Drawing($("board"), $("cross"), page.shapes, settings, changed);
  $("undo").addEventListener("click", () => drawing.undo());
  $("clear").addEventListener("click", () => drawing.clear());
  $("restore").addEventListener("click", () => attempt(startFromScene));
}
