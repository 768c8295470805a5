// Pictures of images and masks: what is painted, the chosen pixel's frame, and the text for those who do not see it.

const ORANGE = [213, 94, 0]; // vermilion shows against any grey
const LIGHT = [235, 235, 235];
const GREY = [56, 56, 56]; // void among errors: darker than orange also without colours
const PALE = [224, 224, 192]; // void among classes, as in VOC

import { VOID, shares } from "./numbers.js";

/** An element with attributes and children. */
export function element(name, attributes = {}, ...children) {
  const result = Object.assign(document.createElement(name), attributes);
  result.append(...children);
  return result;
}

/** A canvas in a frame that shows an ImageData, and the pixel that a reader chooses by a click. */
export class Picture {
  constructor(choose) {
    this.canvas = element("canvas", { width: 64, height: 64 });
    this.canvas.setAttribute("role", "img");
    this.pixel = element("div", { className: "pixel" });
    this.frame = element("div", { className: "frame" }, this.canvas, this.pixel);
    this.canvas.addEventListener("click", (event) => {
      const box = this.canvas.getBoundingClientRect();
      choose(
        Math.floor(((event.clientX - box.left) / box.width) * this.canvas.width),
        Math.floor(((event.clientY - box.top) / box.height) * this.canvas.height),
      );
    });
  }

  show(image, text) {
    if (this.canvas.width !== image.width) this.canvas.width = image.width;
    if (this.canvas.height !== image.height) this.canvas.height = image.height;
    this.canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
    this.canvas.setAttribute("aria-label", text);
  }

  mark([x, y]) {
    const { width, height } = this.canvas;
    Object.assign(this.pixel.style, {
      left: `${(100 * x) / width}%`,
      top: `${(100 * y) / height}%`,
      width: `${100 / width}%`,
      height: `${100 / height}%`,
    });
  }
}

/** Labels in the colours of their classes, an ImageData. */
export function coloured(labels, width, palette) {
  return painted(labels, width, (label) => (label === VOID ? PALE : palette[label]));
}

/** Orange where a mask differs from another, light where not. */
export function differences(found, truth, width) {
  return painted(truth, width, (label, i) => (label === VOID ? GREY : found[i] === label ? LIGHT : ORANGE));
}

function painted(labels, width, colour) {
  const image = new ImageData(width, labels.length / width);
  for (let i = 0; i < labels.length; i++) {
    const [red, green, blue] = colour(labels[i], i);
    image.data.set([red, green, blue, 255], 4 * i);
  }
  return image;
}

/** `left` up to the border (a share of the width) and `right` behind it, each over the image at an opacity. */
export function wiped(image, left, right, border, opacity) {
  const { width, height } = image;
  const result = new ImageData(width, height);
  const column = Math.round(border * width);
  for (let i = 0; i < 4 * width * height; i++) {
    const layer = (i >> 2) % width < column ? left : right;
    result.data[i] = Math.round(image.data[i] + opacity * (layer.data[i] - image.data[i]));
  }
  return result;
}

/** A mask in words: the classes and their shares. */
export function inWords(labels, names) {
  const parts = shares(labels).map(([label, share]) => `${names[label]} ${Math.round(100 * share)} %`);
  return parts.slice(0, 8).join(", ");
}
