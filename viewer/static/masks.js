// Masks: read from PNG files, painted over images.

const SAFE = [
  "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
]; // Okabe and Ito, "Color Universal Design" (2008)
const WRONG = [227, 27, 35];

/** Colors by train id, [r, g, b], of the palette that is chosen. */
export function colorsOf(overview, palette) {
  return overview.classes.map(({ color }, id) =>
    hex(palette === "safe" && id > 0 ? SAFE[(id - 1) % SAFE.length] : color));
}

function hex(text) {
  const number = parseInt(text.slice(1), 16);
  return [number >> 16, (number >> 8) & 255, number & 255];
}

/** Read a mask from its picture: its size, and a train id for each pixel. */
export function maskOf(image, bits) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  const ids = new Uint16Array(image.width * image.height);
  for (let i = 0; i < ids.length; i++) {
    ids[i] = bits === 16 ? data[4 * i] * 256 + data[4 * i + 1] : data[4 * i];
  }
  return { width: image.width, height: image.height, ids };
}

/**
 * Paint an image with a mask over it.
 *
 * look: { fill, outline, opacity, colors, ignore, hidden (a Set of train ids), pair }
 * other: a mask to compare with; pixels that differ are red, all others gray. With `pair`, only
 * those are red whose true and predicted class it names.
 */
export function paint(canvas, image, mask, look, other = null) {
  canvas.width = mask ? mask.width : image.width;
  canvas.height = mask ? mask.height : image.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = true;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (!mask) return;
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  if (other) difference(pixels.data, mask, other, look);
  else overlay(pixels.data, mask, look);
  context.putImageData(pixels, 0, 0);
}

function overlay(data, { width, ids }, { fill, outline, opacity, colors, ignore, hidden }) {
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i];
    if (id === 0 || hidden.has(id)) continue;
    const color = id === ignore ? [128, 128, 128] : colors[id];
    if (!color) continue;
    const edge = outline && isEdge(ids, width, i);
    const weight = edge ? 1 : fill ? opacity : 0;
    for (let c = 0; c < 3; c++) {
      data[4 * i + c] += weight * (color[c] - data[4 * i + c]);
    }
  }
}

function isEdge(ids, width, i) {
  const id = ids[i], x = i % width;
  return (x > 0 && ids[i - 1] !== id) || (x < width - 1 && ids[i + 1] !== id) ||
    (i >= width && ids[i - width] !== id) || (i + width < ids.length && ids[i + width] !== id);
}

function difference(data, { ids }, other, { ignore, pair, colors }) {
  for (let i = 0; i < ids.length; i++) {
    const gray = (data[4 * i] * 3 + data[4 * i + 1] * 6 + data[4 * i + 2]) / 10;
    const missing = other.ids[i] === ignore ? colors.length : other.ids[i];
    const wrong = pair ? ids[i] === pair[0] && missing === pair[1] :
      ids[i] !== ignore && ids[i] !== other.ids[i];
    for (let c = 0; c < 3; c++) {
      data[4 * i + c] = wrong ? gray / 3 + WRONG[c] * 2 / 3 : gray / 2 + (ids[i] === ignore ? 0 : 96);
    }
  }
}
