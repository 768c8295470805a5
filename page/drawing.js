// The board to draw on: a brush and the twenty shapes as stamps, with the mouse, a finger or the keyboard.

const GROUND = "#8b8f88"; // dull, as the ground of the scenes
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 8; // pixels of the board for a press of an arrow key
const MOST_UNDOS = 20;

export class Drawing {
  /** `settings()` gives tool ("brush" or a shape), colour and size (a share of the side); `changed` hears of strokes. */
  constructor(canvas, cross, shapes, settings, changed) {
    Object.assign(this, { canvas, cross, shapes, settings, changed, past: [], begun: false, line: false });
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.place = [canvas.width / 2, canvas.height / 2];
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("keyup", ({ key }) => key === "Shift" && (this.line = false));
    canvas.addEventListener("blur", () => (this.line = false));
    this.#fill();
    this.#move(this.place);
  }

  /** An empty ground. */
  clear() {
    this.#remember();
    this.#fill();
    this.changed();
  }

  /** Begin with an ImageData. */
  start(image) {
    this.#remember();
    const ground = new OffscreenCanvas(image.width, image.height);
    ground.getContext("2d").putImageData(image, 0, 0);
    this.context.imageSmoothingEnabled = false; // a scene stays pixel for pixel what it was
    this.context.drawImage(ground, 0, 0, this.canvas.width, this.canvas.height);
    this.changed();
  }

  undo() {
    const before = this.past.pop();
    if (!before) return;
    this.context.putImageData(before, 0, 0);
    this.changed();
  }

  #fill() {
    this.context.fillStyle = GROUND;
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  #remember() {
    this.begun = true;
    this.past.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.past.length > MOST_UNDOS) this.past.shift();
  }

  #press(event) {
    if (event.button !== 0 || !event.isPrimary) return; // the left button, a pen's tip, the first finger
    this.canvas.setPointerCapture(event.pointerId);
    this.#move(this.#under(event));
    this.#remember();
    this.#apply(this.place);
  }

  #drag(event) {
    if (!this.canvas.hasPointerCapture(event.pointerId) || this.settings().tool !== "brush") return;
    const before = this.place;
    this.#move(this.#under(event));
    this.#apply(before);
  }

  #key(event) {
    const step = STEPS[event.key];
    if (step) {
      if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own keys, such as back
      const before = this.place;
      this.#move([this.place[0] + STEP * step[0], this.place[1] + STEP * step[1]]);
      if (event.shiftKey && this.settings().tool === "brush") {
        if (!this.line) this.#remember(); // once for the whole line
        this.line = true;
        this.#apply(before);
      }
    } else if (event.key === " " || event.key === "Enter") {
      if (!event.repeat) {
        this.#remember();
        this.#apply(this.place);
      }
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.undo();
    } else {
      return;
    }
    event.preventDefault();
  }

  #under(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.canvas.width,
      ((event.clientY - box.top) / box.height) * this.canvas.height,
    ];
  }

  #move([x, y]) {
    const inside = (value, end) => Math.min(Math.max(value, 0), end);
    this.place = [inside(x, this.canvas.width), inside(y, this.canvas.height)];
    this.cross.style.left = `${(100 * this.place[0]) / this.canvas.width}%`;
    this.cross.style.top = `${(100 * this.place[1]) / this.canvas.height}%`;
    const [column, row] = this.place.map(Math.round);
    this.canvas.setAttribute("aria-label", `Drawing board, 256 by 256. Cross at ${column}, ${row}.`);
  }

  /** The stamp at the cross, or the brush's line from `before` to it. */
  #apply(before) {
    const { tool, colour, size } = this.settings();
    if (tool === "brush") this.#line(before, colour, size);
    else this.#stamp(this.shapes[tool], colour, size);
    this.changed();
  }

  #line(before, colour, size) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = (size * this.canvas.width) / 2;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(...before);
    context.lineTo(this.place[0] + 0.01, this.place[1]); // browsers draw nothing of a line without length
    context.stroke();
  }

  /** Polygons that are added or cut out in their order, in one colour, with a soft shadow as in the scenes. */
  #stamp(pieces, colour, size) {
    const { width, height } = this.canvas;
    const layer = new OffscreenCanvas(width, height);
    const shape = layer.getContext("2d");
    shape.translate(...this.place);
    shape.scale(size * width, size * width);
    shape.fillStyle = colour;
    for (const [add, points] of pieces) {
      shape.globalCompositeOperation = add ? "source-over" : "destination-out";
      shape.beginPath();
      for (const point of points) shape.lineTo(...point);
      shape.fill();
    }
    const { context } = this;
    context.save();
    Object.assign(context, { shadowColor: "#0007", shadowBlur: 6, shadowOffsetX: 7, shadowOffsetY: 7 });
    context.drawImage(layer, 0, 0);
    context.restore();
  }
}
