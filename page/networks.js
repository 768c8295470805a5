// The page's side of worker.js: loads the runtime and the networks, and asks them.

export class Networks {
  #worker = new Worker("worker.js", { type: "module" });
  #waiting = new Map();
  #next = 0;
  #answered = false;
  #failed = null; // why the worker did not start
  #last = Promise.resolve(); // the latest answer

  constructor() {
    this.threads = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency ?? 1, 4) : 1;
    this.#worker.addEventListener("message", ({ data }) => {
      const { resolve, reject } = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      this.#answered = true;
      data.error ? reject(new Error(data.error)) : resolve(data.result);
    });
    this.#worker.addEventListener("error", (event) => {
      const error = new Error(event.message || "worker.js, or what it loads, is missing on this host");
      if (!this.#answered) this.#failed = error;
      for (const { reject } of this.#waiting.values()) reject(error);
      this.#waiting.clear();
    });
  }

  /** Start the runtime from a file of the page. */
  async start(file, report) {
    const wasm = await unpacked(file, report);
    await this.#ask({ action: "start", wasm, threads: this.threads }, [wasm]);
  }

  /** Load the network `name` from a file of the page. */
  async open(name, file, report) {
    const model = new Uint8Array(await unpacked(file, report));
    await this.#ask({ action: "open", name, model }, [model.buffer]).catch((error) => {
      throw new Error(`${file} is no network that can be used (${error.message})`);
    });
  }

  /** What a network says of an ImageData: `logits` (C, H, W), `classes` C, `milliseconds`. */
  run(name, image) {
    const answer = this.#ask({ action: "run", name, pixels: image.data, width: image.width, height: image.height });
    this.#last = answer.catch(() => {});
    return answer;
  }

  /** Resolves when no network works: a request cannot be called back, so those for older images must not queue. */
  idle() {
    return this.#last;
  }

  #ask(request, transfer = []) {
    if (this.#failed) return Promise.reject(this.#failed);
    return new Promise((resolve, reject) => {
      const id = this.#next++;
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, ...request }, transfer);
    });
  }
}

/** The bytes of a gzip file; some hosts have unpacked it before it arrives. `report` hears how many bytes came. */
async function unpacked(file, report) {
  const response = await fetch(file).catch(() => {
    throw new Error(`${file} did not arrive; load the page again`);
  });
  if (!response.ok) throw new Error(`${file} is missing on this host (${response.status})`);
  const parts = [];
  const reader = response.body.getReader();
  for (let step = await reader.read(); !step.done; step = await reader.read()) {
    parts.push(step.value);
    report(step.value.length);
  }
  const packed = new Blob(parts);
  const [first, second] = new Uint8Array(await packed.slice(0, 2).arrayBuffer());
  if (first !== 0x1f || second !== 0x8b) return packed.arrayBuffer();
  return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
