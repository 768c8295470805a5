// Images from files, canvases and the camera, as the networks take them: an ImageData of a given short side.

const MOST_PIXELS = 64e6; // more takes so much memory to decode that phones close the page
const LONGEST = 4; // times the short side
const SMALLEST = 32; // pixels of the short side; smaller images are enlarged

/** A mistake that the reader is told of in one sentence. */
export class Problem extends Error {}

/** A picture from a file. */
export async function read(file) {
  const name = file.name || "the pasted image";
  const url = URL.createObjectURL(file);
  const picture = new Image();
  try {
    await new Promise((resolve, reject) => {
      picture.onload = resolve;
      picture.onerror = reject;
      picture.src = url;
    });
  } catch {
    throw new Problem(`${name} is no image that this browser can read; choose a PNG, JPEG or WebP file.`);
  } finally {
    // Decoding may come later, and still needs the address.
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }
  const [width, height] = size(picture);
  if (!width || !height) throw new Problem(`${name} does not say how large it is; choose a PNG, JPEG or WebP file.`);
  if (width * height > MOST_PIXELS) {
    throw new Problem(
      `${name} has ${width} × ${height} pixels, more than the ${MOST_PIXELS / 1e6} million that this page decodes; ` +
        "make it smaller first.",
    );
  }
  if (Math.max(width, height) > LONGEST * Math.min(width, height)) {
    throw new Problem(
      `${name} has ${width} × ${height} pixels, and its long side may be at most ${LONGEST} times the short one; ` +
        "cut a part out of it first.",
    );
  }
  // A damaged file loads as far as it goes, and decode() is content with that; only this is not. It reads no SVG.
  if (file.type !== "image/svg+xml") {
    try {
      (await createImageBitmap(file, { resizeWidth: 1, resizeHeight: 1 })).close();
    } catch {
      throw new Problem(`${name} is damaged or cut off; choose another copy of it.`);
    }
  }
  return picture;
}

/** Width and height in pixels of an image, a video or a canvas. */
export function size(picture) {
  return [picture.naturalWidth || picture.videoWidth || picture.width, picture.naturalHeight || picture.videoHeight || picture.height];
}

/** The picture with its short side at most `side` pixels; what is transparent becomes white. */
export function fitted(picture, side) {
  const [width, height] = size(picture);
  const short = Math.min(width, height);
  const scale = short < SMALLEST ? SMALLEST / short : Math.min(1, side / short);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** An image of the page's own folder, as it is. */
export async function fetched(address) {
  const picture = new Image();
  picture.src = address;
  await picture.decode().catch(() => {
    throw new Error(`${address} is missing on this host, or damaged`);
  });
  return fitted(picture, Infinity);
}
