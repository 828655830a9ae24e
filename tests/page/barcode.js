// @ts-check
/**
 * Reads the barcode that the fake engine draws into its pictures; the twin of `src/shotstream/engine/barcode.py`.
 *
 * @typedef {{story: number, shot: number, take: number, chunk: number, frame: number, caption: number}} Barcode
 */

const COLUMNS = 32;
const ROWS = 3;
const MAGIC = 0b10110010;
/** @type {[keyof Barcode, number][]} */
const FIELDS = [["story", 8], ["shot", 12], ["take", 6], ["chunk", 10], ["frame", 14], ["caption", 22]];

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

/** 22 bits of a caption. @param {string} caption */
export function captionHash(caption) {
  return crc32(new TextEncoder().encode(caption)) % 2 ** 22;
}

/** @param {string} bits */
function checksum(bits) {
  const bytes = Uint8Array.from({ length: 10 }, (_, index) => Number.parseInt(bits.slice(8 * index, 8 * index + 8), 2));
  return crc32(bytes) & 0xffff;
}

/**
 * @param {{data: Uint8ClampedArray | Uint8Array, width: number, height: number}} image RGBA, of any size and the
 *   picture's shape
 * @returns {Barcode | null} null where there is no intact barcode
 */
export function readBarcode({ data, width, height }) {
  const cell = width / COLUMNS;
  const top = height - ROWS * cell;
  let bits = "";
  for (let row = 0; row < ROWS; row += 1) {
    for (let column = 0; column < COLUMNS; column += 1) {
      const x = Math.floor((column + 0.5) * cell);
      const y = Math.floor(top + (row + 0.5) * cell);
      bits += data[4 * (y * width + x) + 1] > 127 ? "1" : "0";
    }
  }
  if (Number.parseInt(bits.slice(0, 8), 2) !== MAGIC) return null;
  if (Number.parseInt(bits.slice(80), 2) !== checksum(bits.slice(0, 80))) return null;
  let at = 8;
  const values = FIELDS.map(([name, size]) => {
    at += size;
    return [name, Number.parseInt(bits.slice(at - size, at), 2)];
  });
  return Object.fromEntries(values);
}
