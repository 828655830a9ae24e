// @ts-check
/**
 * The story so far, as this page has received it, as one mp4: the fragments as they came, each given its place in time.
 * Pictures that a cut made void are left out. Finished parts are Blobs, which browsers keep outside the page's memory.
 *
 * @typedef {import("./protocol.js").MediaHeader} MediaHeader
 * @typedef {{header: MediaHeader, bytes: Uint8Array<ArrayBuffer>, frames: number}} Part   frames: those that count
 */

/** A cut can only make void what was sent shortly before it. */
const UNSETTLED_PARTS = 4;

export class Film {
  /** @param {Uint8Array<ArrayBuffer>} initSegment @param {number} fps */
  constructor(initSegment, fps) {
    this.initSegment = initSegment;
    this.ticksPerFrame = timescaleOf(initSegment) / fps;
    /** @type {Blob[]} Parts that no cut can change any more, placed. */
    this.settled = [];
    /** @type {Part[]} */
    this.parts = [];
    this.numFrames = 0;
    this.numFragments = 0;
  }

  clear() {
    this.settled = [];
    this.parts = [];
    this.numFrames = this.numFragments = 0;
  }

  /** Take a chunk. A story's first chunk begins a new film. @param {MediaHeader} header @param {Uint8Array<ArrayBuffer>} bytes */
  add(header, bytes) {
    if (header.shot === 0 && header.chunk === 0 && header.newEpoch) this.clear();
    const newest = this.parts.at(-1)?.header;
    if (newest !== undefined && header.sequence <= newest.sequence) return; // sent again
    if (newest !== undefined && newest.epoch !== header.epoch) this.voidFrom(header.start, newest.epoch);
    this.parts.push({ header, bytes, frames: header.numFrames });
    while (this.parts.length > UNSETTLED_PARTS) this.settle(/** @type {Part} */ (this.parts.shift()));
  }

  /** @param {number} start story frame @param {number} epoch */
  voidFrom(start, epoch) {
    for (const part of this.parts) {
      if (part.header.epoch === epoch) part.frames = Math.max(0, Math.min(part.frames, start - part.header.start));
    }
  }

  /** @param {Part} part */
  settle(part) {
    if (part.frames === 0) return;
    this.settled.push(new Blob([this.placed(part, this.numFrames, this.numFragments + 1)]));
    this.numFrames += part.frames;
    this.numFragments += 1;
  }

  /** @param {Part} part @param {number} firstFrame @param {number} number */
  placed({ bytes, frames }, firstFrame, number) {
    return placeFragment(bytes, { time: BigInt(Math.round(firstFrame * this.ticksPerFrame)), number, frames });
  }

  /** The whole film; it can go on afterwards. */
  blob() {
    let [frames, number] = [this.numFrames, this.numFragments];
    const open = this.parts.filter((part) => part.frames > 0).map((part) => {
      const placed = this.placed(part, frames, (number += 1));
      frames += part.frames;
      return placed;
    });
    return new Blob([this.initSegment, ...this.settled, ...open], { type: "video/mp4" });
  }
}

/**
 * A copy of a fragment that starts at another time and holds only its first pictures.
 *
 * @param {Uint8Array<ArrayBuffer>} fragment moof and mdat
 * @param {{time: bigint, number: number, frames: number}} place time in ticks; number counts fragments from 1
 */
export function placeFragment(fragment, { time, number, frames }) {
  const copy = fragment.slice();
  const view = new DataView(copy.buffer);
  const moof = boxIn(view, "moof");
  const traf = boxIn(view, "traf", moof);
  view.setUint32(boxIn(view, "mfhd", moof).content + 4, number);
  const tfdt = boxIn(view, "tfdt", traf).content;
  if (view.getUint8(tfdt) === 1) view.setBigUint64(tfdt + 4, time);
  else view.setUint32(tfdt + 4, Number(time));
  return withFirst(copy, view, { moof, traf, trun: boxIn(view, "trun", traf) }, frames);
}

/**
 * Shorten the table of pictures; what the rest needed stays in the mdat, unread.
 *
 * @param {Uint8Array<ArrayBuffer>} bytes @param {DataView} view
 * @param {{moof: Box, traf: Box, trun: Box}} boxes @param {number} frames
 */
function withFirst(bytes, view, { moof, traf, trun }, frames) {
  const count = view.getUint32(trun.content + 4);
  if (frames >= count) return bytes;
  const flags = view.getUint32(trun.content) & 0xffffff;
  const perPicture = 4 * [0x100, 0x200, 0x400, 0x800].filter((flag) => flags & flag).length;
  const removed = (count - frames) * perPicture;
  view.setUint32(trun.content + 4, frames);
  if (flags & 1) view.setInt32(trun.content + 8, view.getInt32(trun.content + 8) - removed);
  for (const box of [moof, traf, trun]) view.setUint32(box.start, view.getUint32(box.start) - removed);
  const shorter = new Uint8Array(bytes.length - removed);
  shorter.set(bytes.subarray(0, trun.end - removed));
  shorter.set(bytes.subarray(trun.end), trun.end - removed);
  return shorter;
}

/** @param {Uint8Array<ArrayBuffer>} initSegment ticks per second of its track */
function timescaleOf(initSegment) {
  const view = new DataView(initSegment.buffer, initSegment.byteOffset, initSegment.byteLength);
  const mdhd = boxIn(view, "mdhd", boxIn(view, "mdia", boxIn(view, "trak", boxIn(view, "moov")))).content;
  return view.getUint32(mdhd + (view.getUint8(mdhd) === 1 ? 20 : 12));
}

/**
 * @typedef {{start: number, content: number, end: number}} Box
 * @param {DataView} view @param {string} kind @param {{content: number, end: number}} [parent]
 * @returns {Box} the first box of a kind (ISO/IEC 14496-12)
 */
function boxIn(view, kind, parent = { content: 0, end: view.byteLength }) {
  for (let at = parent.content; at + 8 <= parent.end; ) {
    const size = view.getUint32(at);
    const name = String.fromCharCode(...[4, 5, 6, 7].map((offset) => view.getUint8(at + offset)));
    if (name === kind) return { start: at, content: at + 8, end: at + size };
    if (size < 8) break;
    at += size;
  }
  throw new Error(`no ${kind} box in this fragment: reload the page`);
}
