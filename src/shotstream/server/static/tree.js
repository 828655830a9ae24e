// @ts-check
/**
 * The tree of takes as one reads it: a chain of shots one after the other, and beside a shot the chains that begin
 * instead of it. Where the live way leads is the chain; elsewhere the newest take is.
 *
 * @typedef {import("./protocol.js").Take} Take
 * @typedef {{take: Take, instead: Step[][]}} Step   instead: other chains that begin at this place of the story
 */

/**
 * @param {Take[]} takes      in the order in which they were made
 * @param {boolean} hidden    whether hidden takes are listed too
 * @returns {Step[]} the chain from the story's beginning
 */
export function grow(takes, hidden = false) {
  /** @type {Map<number | null, Take[]>} */
  const children = new Map();
  for (const take of takes) {
    if (hidden || !take.hidden) children.set(take.parent, [...(children.get(take.parent) ?? []), take]);
  }
  return follow(children, children.get(null) ?? []);
}

/** @param {Map<number | null, Take[]>} children @param {Take[]} siblings takes of one place @returns {Step[]} */
function follow(children, siblings) {
  const chain = [];
  while (siblings.length) {
    const next = /** @type {Take} */ (siblings.find(({ live }) => live) ?? siblings.at(-1));
    const others = siblings.filter((take) => take !== next);
    chain.push({ take: next, instead: others.map((take) => follow(children, [take])) });
    siblings = children.get(next.node) ?? [];
  }
  return chain;
}

/**
 * Where a take's chunks end, in seconds from its beginning; the first one is shorter.
 *
 * @param {number} numChunks
 * @param {{first_chunk_frames: number, chunk_frames: number, fps: number}} preset
 */
export function secondsOf(numChunks, { first_chunk_frames, chunk_frames, fps }) {
  return numChunks ? (first_chunk_frames + (numChunks - 1) * chunk_frames) / fps : 0;
}

/**
 * What an undo takes back, in words: what was said last in the running shot, else the shot. What a retake says by itself
 * nobody said in it.
 *
 * @param {{shots: import("./protocol.js").ShotCard[]}} state
 */
export function newestInstruction({ shots }) {
  const card = shots.at(-1);
  return card?.steers.findLast(({ id }) => id)?.text || card?.text || "";
}

/**
 * A take that went on differently than the one whose first chunks it shares has a letter of its own: 1, 1b, 1c.
 *
 * @param {Take} take
 * @param {Take[]} takes   all of them
 */
export function nameOf(take, takes) {
  const alike = takes.filter(({ parent, shot, take: number }) => parent === take.parent && shot === take.shot && number === take.take);
  const index = alike.findIndex(({ node }) => node === take.node);
  return `Shot ${take.shot + 1}, take ${take.take + 1}${index > 0 ? String.fromCharCode(97 + Math.min(index, 25)) : ""}`;
}
