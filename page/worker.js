// The worker that runs the networks, so that the page answers clicks meanwhile. One request after the other.

import * as ort from "./ort.js";

const sessions = new Map();
let queue = Promise.resolve();

const ACTIONS = {
  /** The WebAssembly of onnxruntime-web, and how many threads it may use. */
  async start({ wasm, threads }) {
    if (typeof WebAssembly !== "object") throw new Error("this browser has no WebAssembly, or it is switched off");
    if (!WebAssembly.validate(wasm)) throw new Error("the runtime is damaged, or needs SIMD, which this browser lacks");
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = threads;
    return {};
  },

  /** A network, from the bytes of its ONNX file. */
  async open({ name, model }) {
    sessions.set(name, await ort.InferenceSession.create(model, { executionProviders: ["wasm"] }));
    return {};
  },

  /** Logits (C, H, W) of an image of RGBA bytes, and the milliseconds of the pass alone. */
  async run({ name, pixels, width, height }) {
    const image = new ort.Tensor("uint8", planes(pixels), [1, 3, height, width]);
    const begin = performance.now();
    const { logits } = await sessions.get(name).run({ image });
    return { milliseconds: performance.now() - begin, logits: logits.data, classes: logits.dims[1] };
  },
};

addEventListener("message", ({ data }) => {
  queue = queue.then(() => answer(data));
});

async function answer({ id, action, ...request }) {
  try {
    const result = await ACTIONS[action](request);
    // Not transferred: logits may lie in memory that belongs to WebAssembly.
    postMessage({ id, result });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
}

/** RGBA pixels, one behind the other, as planes of red, green and blue. */
function planes(pixels) {
  const count = pixels.length / 4;
  const result = new Uint8Array(3 * count);
  for (let i = 0; i < count; i++) {
    for (let channel = 0; channel < 3; channel++) result[channel * count + i] = pixels[4 * i + channel];
  }
  return result;
}
