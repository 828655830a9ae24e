import assert from "node:assert/strict";
import { test } from "node:test";

import { grow, nameOf, newestInstruction, secondsOf } from "../../src/shotstream/server/static/tree.js";

const take = (node, parent, fields = {}) => ({
  node, parent, parent_frames: null, origin: null, shot: 0, take: 0, text: "", caption: "", num_chunks: 7, made_chunks: 1,
  hidden: false, live: false, thumbnail: "", ...fields,
});
/** Nodes of a chain; what is instead of a take stands in brackets behind it. */
const words = (chain) => chain.map(({ take: { node }, instead }) => node + instead.map((one) => `[${words(one)}]`).join("")).join(" ");

test("a story without branches is one chain, in the order of its shots", () => {
  assert.equal(words(grow([take(1, null), take(2, 1), take(3, 2)])), "1 2 3");
  assert.deepEqual(grow([]), []);
});

test("the live way is the chain, and every other way stands beside the take instead of which it begins", () => {
  const takes = [take(1, null, { live: true }), take(2, 1), take(3, 2), take(4, 1, { live: true }), take(5, 4, { live: true }), take(6, 2), take(7, null)];
  assert.equal(words(grow(takes)), "1[7] 4[2 6[3]] 5");
});

test("hidden takes are left out with all that follow them, unless they are asked for", () => {
  const takes = [take(1, null, { live: true }), take(2, 1, { hidden: true }), take(3, 2, { hidden: true }), take(4, 1, { live: true })];
  assert.equal(words(grow(takes)), "1 4");
  assert.equal(words(grow(takes, true)), "1 4[2 3]");
});

test("every take is somewhere exactly once, however the tree grew", () => {
  let seed = 7;
  const random = (below) => (seed = (seed * 48271) % 2147483647) % below;
  const takes = Array.from({ length: 60 }, (_, index) => take(index + 1, index && random(8) ? 1 + random(index) : null));
  const all = (chain) => chain.flatMap(({ take: { node }, instead }) => [node, ...instead.flatMap(all)]);
  assert.deepEqual(all(grow(takes)).sort((a, b) => a - b), takes.map(({ node }) => node));
});

test("a take that goes on differently after the same chunks has a name of its own", () => {
  const takes = [take(1, null), take(2, 1, { shot: 1 }), take(3, 1, { shot: 1, origin: 2 }), take(4, 1, { shot: 1, take: 1 })];
  assert.deepEqual(takes.map((one) => nameOf(one, takes)), ["Shot 1, take 1", "Shot 2, take 1", "Shot 2, take 1b", "Shot 2, take 2"]);
});

test("chunks end where their frames do, the first one being shorter", () => {
  const preset = { first_chunk_frames: 9, chunk_frames: 12, fps: 16 };
  assert.deepEqual([0, 1, 2].map((count) => secondsOf(count, preset) * 16), [0, 9, 21]);
});

test("what an undo takes back is the newest steer, else the shot itself", () => {
  const card = (text, ...steers) => ({ text, steers: steers.map((one) => ({ id: one.startsWith("again ") ? "" : one, text: one })) });
  assert.equal(newestInstruction({ shots: [] }), "");
  assert.equal(newestInstruction({ shots: [card("a fox", "he waves"), card("a bear")] }), "a bear");
  assert.equal(newestInstruction({ shots: [card("a fox", "he waves", "he sits")] }), "he sits");
  assert.equal(newestInstruction({ shots: [card("a fox", "he waves", "again he sits")] }), "he waves");
  assert.equal(newestInstruction({ shots: [card("a fox", "again he sits")] }), "a fox");
});
