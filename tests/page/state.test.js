import assert from "node:assert/strict";
import { test } from "node:test";

import { INITIAL, isReady, isRunning, newestOpen, reduce, situation, withoutMemory } from "../../src/shotstream/server/static/state.js";

const PRESET = { name: "fake", width: 320, height: 192, fps: 16, mime: "", first_chunk_frames: 9, chunk_frames: 12, chunks_per_shot: 7, memory_frames: 6, suggestions: [] };
const STATUS = { state: "live", detail: "", late_ms: 0, queue_position: null, clock_frame: 0, clock_running: true };

const hello = (fields = {}, snapshot = {}) => ({
  kind: "hello", protocol: 1, viewer: "v", story: "main", role: "director", seq: 0, replayed: 0, preset: PRESET, writer: "template",
  snapshot: { status: STATUS, global_caption: "", seed: 0, epoch: 0, shots: [], head: null, takes: [], pending: [], memory: [], ...snapshot },
  ...fields,
});
const card = (shot) => ({ shot, take: 0, start: 90 * shot, text: `shot ${shot}`, caption: "", num_chunks: 7, made_chunks: 0, context: [], steers: [], thumbnail: "" });
const opened = (seq, shot) => ({ kind: "shot_opened", seq, ...card(shot), aired_before: null });
const chunk = (seq, shot, index, caption = "") => ({ kind: "chunk", seq, shot, chunk: index, take: 0, sequence: 10 * shot + index, epoch: shot, start: 0, num_frames: 12, caption, applied: [], num_chunks: 7, compute_ms: 1, latency_ms: null });
const ended = (seq, fields) => ({ kind: "ended", seq, id: "a", command: "steer", outcome: "applied", shot: 0, chunk: 1, first_frame: 9, caption: "", left_out: [], reason: "", ...fields });
const accepted = (seq, id = "a", command = "steer") => ({ kind: "accepted", seq, id, command, text: "look surprised", at: null });
const message = (one, now = 0) => ({ type: "message", message: one, now });
const sent = (now, id = "a", command = "steer") => ({ type: "sent", id, command, text: "look surprised", now });
const presented = (shot, index, now, live = true) => ({ type: "presented", live, now, onScreen: { shot, chunk: index, take: 0, epoch: shot, sequence: 10 * shot + index } });
const open = { type: "connection", connection: { phase: "open" } };
const run = (...actions) => actions.reduce(reduce, INITIAL);

test("a receipt appears only when the instruction is on the screen, and says how long it took", () => {
  const before = run(open, message(hello()), message(opened(1, 0)), sent(1000), message(accepted(2)), message(ended(3)), presented(0, 0, 1400));
  assert.deepEqual(before.receipts, []);
  assert.equal(before.instructions[0].stage, "coming");
  const after = reduce(before, presented(0, 1, 1650));
  assert.deepEqual(after.instructions, []);
  assert.equal(after.receipts[0].latencyMs, 650);
  assert.equal(after.latencyMs, 650);
});

test("a receipt is not lost when its chunk was left out for this viewer", () => {
  const state = run(message(hello()), sent(0), message(ended(1)), presented(0, 4, 900));
  assert.equal(state.receipts.length, 1);
});

test("an instruction that another person gave gets a receipt without a time", () => {
  const state = run(message(hello()), message(accepted(1)), message(ended(2)), presented(0, 1, 500));
  assert.equal(state.receipts[0].text, "look surprised");
  assert.equal(state.receipts[0].latencyMs, null);
});

test("a superseded steer says so at once", () => {
  const state = run(message(hello()), sent(0), message(ended(1, { outcome: "superseded", shot: null, chunk: null, reason: "a cut came after it" }), 5));
  assert.equal(state.receipts[0].outcome, "superseded");
  assert.deepEqual(state.instructions, []);
});

test("a refused command ends with the server's words", () => {
  const error = { kind: "error", code: "rate_limited", message: "slower, please", id: "a", fatal: false };
  const state = run(message(hello()), sent(0), message(error, 5));
  assert.equal(state.receipts[0].reason, "slower, please");
  assert.deepEqual(state.instructions, []);
});

test("a steer leaves a mark on its shot, once, even where it is replayed", () => {
  const state = run(message(hello()), message(opened(1, 0)), message(accepted(2)), message(ended(3)));
  assert.deepEqual(state.shots[0].steers.map(({ chunk, text }) => [chunk, text]), [[1, "look surprised"]]);
  const again = run(message(hello({ seq: 3, replayed: 3 }, { shots: state.shots })), message(opened(1, 0)), message(ended(3)));
  assert.equal(again.shots[0].steers.length, 1);
});

test("events that the snapshot holds already change nothing but receipts", () => {
  const state = run(message(hello({ seq: 9, replayed: 9 }, { shots: [card(0), card(1)] })), message(opened(1, 0)), message(chunk(2, 0, 6)), message({ kind: "status", seq: 3, ...STATUS, state: "paused" }));
  assert.equal(state.shots.length, 2);
  assert.equal(state.status.state, "live");
  assert.equal(state.seq, 9);
});

test("an instruction whose end came while the connection was lost still gets its receipt", () => {
  const lost = { type: "connection", connection: { phase: "waiting" } };
  const state = run(message(hello()), sent(0), message(accepted(1)), lost, open, message(hello({ seq: 4, replayed: 3 })), message(ended(2)), presented(0, 2, 3000));
  assert.equal(state.receipts[0].outcome, "applied");
});

test("an instruction that never reached the server is reported as lost", () => {
  const state = run(message(hello()), sent(0), message(hello({ seq: 4 })));
  assert.match(state.receipts[0].reason, /send it again/);
  assert.deepEqual(state.instructions, []);
});

test("nor does one stay that what was missed says nothing of; what is typed meanwhile does", () => {
  const back = [message(hello()), sent(0), sent(0, "b"), message(accepted(1, "c")), message(hello({ seq: 4, replayed: 3 })), sent(5, "d")];
  const paused = message({ kind: "status", seq: 2, ...STATUS, state: "paused" });
  const superseded = message(ended(3, { id: "b", shot: null, chunk: null, outcome: "superseded" }));
  const before = run(...back, paused, superseded);
  assert.deepEqual(before.instructions.map(({ id }) => id), ["a", "c", "d"]);
  const after = reduce(before, message(ended(4, { id: "c" })));
  assert.deepEqual(after.instructions.map(({ id }) => id), ["d"]);
  assert.deepEqual(after.receipts.map(({ id, outcome }) => [id, outcome]), [["b", "superseded"], ["a", "failed"]]);
  assert.match(after.receipts[1].reason, /send it again/);
});

test("a start that waits in the queue stays pending through a reconnect and a reload, and can be taken back", () => {
  const queued = { status: { ...STATUS, state: "queued", queue_position: 1 } };
  const listed = { ...queued, pending: [{ id: "a", command: "start", text: "a fox", at: null }] };
  const again = run(message(hello()), sent(1000, "a", "start"), message(hello({ seq: 2 }, listed)));
  const [waiting] = again.instructions;
  assert.deepEqual([waiting.id, waiting.stage, waiting.mine, waiting.sentAt], ["a", "accepted", true, 1000]);
  assert.deepEqual(again.receipts, []);
  const reloaded = run(open, message(hello({}, listed)));
  assert.equal(newestOpen(reloaded).text, "a fox");
  const lost = run(message(hello()), sent(1000, "a", "start"), message(hello({ seq: 2 }, queued)));
  assert.match(lost.receipts[0].reason, /send it again/);
});

test("what others have pending in a running story is not taken back by one's own key", () => {
  const pending = [{ id: "b", command: "steer", text: "he waves", at: null }];
  assert.equal(newestOpen(run(message(hello({}, { pending })))), undefined);
  assert.equal(newestOpen(run(message(hello({}, { pending })), sent(1))).id, "a");
});

test("a new story clears the cards of the one before", () => {
  const state = run(message(hello()), message(opened(1, 0)), message(opened(2, 1)), message(opened(3, 0)));
  assert.deepEqual(state.shots.map(({ shot }) => shot), [0]);
});

test("the caption shown is that of the picture on screen, not of the newest chunk", () => {
  const state = run(message(hello()), message(opened(1, 0)), message(chunk(2, 0, 0, "old")), message(chunk(3, 0, 1, "new")), presented(0, 0, 1));
  assert.equal(state.caption, "old");
  assert.equal(reduce(state, presented(0, 1, 2)).caption, "new");
});

test("what was left out of the caption is told when it shows, and after a reload, until another caption is in force", () => {
  const steered = (seq, id, left_out) => [sent(0, id), message(ended(seq, { id, left_out })), presented(0, 1, 900)];
  const long = run(message(hello()), ...steered(1, "a", ["he waves"]));
  assert.deepEqual(long.leftOut, ["he waves"]);
  assert.deepEqual(steered(2, "b", []).reduce(reduce, long).leftOut, []);
  assert.deepEqual(reduce(long, message(ended(2, { id: "u", command: "undo" }))).leftOut, []);
  assert.deepEqual(run(message(hello({}, { left_out: ["he waves"] }))).leftOut, ["he waves"]);
  assert.deepEqual(run(message(hello())).leftOut, []);
});

test("looking back gives no receipts", () => {
  const state = run(message(hello()), sent(0), message(ended(1)), { type: "lookBack", on: true }, presented(0, 1, 5, false));
  assert.deepEqual(state.receipts, []);
});

test("every state of the story has its words, and bad ones say what to do", () => {
  const of = (status) => situation(run(open, message(hello({}, { status: { ...STATUS, ...status } }))));
  assert.equal(of({ state: "live" }).mood, "live");
  assert.equal(of({ state: "late", late_ms: 400 }).badge, "Late 0.4 s");
  assert.equal(of({ state: "holding" }).badge, "Waiting for direction");
  assert.deepEqual([of({ state: "paused" }).help, of({ state: "paused", detail: "nobody is watching" }).help], ["", "Nobody is watching."]);
  assert.match(of({ state: "queued", queue_position: 3 }).title, /Number 3/);
  assert.match(of({ state: "error", detail: "out of memory" }).help, /^Out of memory\. Begin again/);
  for (const state of ["idle", "loading", "warming"]) assert.ok(of({ state }).title);
  assert.equal(situation(INITIAL).badge, "Connecting");
  assert.equal(situation({ ...run(open, message(hello())), connection: { phase: "waiting" } }).badge, "Reconnecting");
  assert.equal(situation(reduce(INITIAL, { type: "unsupported", reason: "no H.264" })).help, "no H.264");
});

test("where the engine stopped there is no story to direct, and another one can begin", () => {
  const of = (state) => run(open, message(hello({}, { status: { ...STATUS, state } })));
  const told = (asks) => ["live", "holding", "paused", "late", "idle", "error", "loading", "warming", "queued"].filter((state) => asks(of(state)));
  assert.deepEqual(told(isRunning), ["live", "holding", "paused", "late"]);
  assert.deepEqual(told(isReady), ["live", "holding", "paused", "late", "idle", "error"]);
  assert.doesNotMatch(situation(of("error")).help, /[Ss]top/);
});

test("a story that waits after a restart is not said to remember nothing", () => {
  const of = (state, ...shots) => withoutMemory(run(open, message(hello({}, { shots: shots.map(card), status: { ...STATUS, state } }))));
  assert.match(of("paused", 0, 1), /goes on/);
  assert.match(of("warming", 0, 1), /goes on/);
  assert.match(of("live", 0), /Nothing yet/);
  assert.match(of("idle"), /Nothing yet/);
  const frame = { shot: 0, frame: 0, reason: "share", caption: "", thumbnail: "" };
  assert.equal(withoutMemory(run(open, message(hello({}, { memory: [frame] })))), "");
});

test("a frozen picture is not called live, and what has words of its own keeps them", () => {
  const starved = { type: "starved", on: true };
  const of = (...more) => situation(run(open, message(hello()), starved, ...more));
  assert.equal(of().badge, "Waiting for video");
  assert.equal(of({ type: "starved", on: false }).badge, "Live");
  const told = (state) => of(message({ kind: "status", seq: 1, ...STATUS, state })).badge;
  assert.deepEqual(["late", "holding", "paused"].map(told), ["Late", "Waiting for direction", "Paused"]);
  assert.equal(of({ type: "lookBack", on: true }).badge, "Looking back");
});

test("no action changes the state before it", () => {
  const before = run(open, message(hello()), message(opened(1, 0)), sent(0));
  const copy = structuredClone(before);
  [message(accepted(2)), message(ended(3)), message(chunk(4, 0, 1)), presented(0, 1, 9)].reduce(reduce, before);
  assert.deepEqual(before, copy);
});

test("going back shows the way that leads there, and every take stays in the tree", () => {
  const at = (node, shot) => ({ ...card(shot), node });
  const take = (node, parent) => ({ node, parent, shot: 0, take: 0, num_chunks: 7, made_chunks: 2, hidden: false, live: true });
  const tree = { shots: [at(1, 0), at(2, 1)], head: 2, takes: [take(1, null), take(2, 1)] };
  const state = run(
    open,
    message(hello({}, tree)),
    message({ kind: "tree", seq: 1, head: 1, takes: [], shots: [at(1, 0)], opening: true }),
    message({ ...opened(2, 1), node: 3, parent: 1 }),
  );
  assert.deepEqual(state.shots.map((one) => one.node), [1, 3]);
  assert.deepEqual(state.takes.map((one) => [one.node, one.live]), [[1, true], [2, false], [3, true]]);
});

test("a retake of an earlier shot arrives with its own first picture, not with a later shot that is still on the screen", () => {
  const retaken = { ...chunk(4, 0, 0), take: 1, sequence: 21, applied: ["r"] };
  const before = run(message(hello()), presented(2, 0, 100), sent(1000, "r", "retake"), message(accepted(3, "r", "retake")), message(retaken),
    message(ended(5, { id: "r", command: "retake", chunk: 0 })));
  assert.equal(before.receipts.length, 0);
  assert.equal(before.instructions[0].stage, "coming");
  const onScreen = { shot: 0, chunk: 0, take: 1, epoch: 3, sequence: 21 };
  const after = reduce(before, { type: "presented", onScreen, live: true, now: 1400 });
  assert.equal(after.receipts[0].latencyMs, 400);
});

test("an undo says so at once: no chunk may follow it", () => {
  const state = run(message(hello()), sent(0, "u", "undo"), message(accepted(1, "u", "undo")), message(ended(2, { id: "u", command: "undo", chunk: 3 }), 7));
  assert.deepEqual(state.receipts.map(({ command, outcome, latencyMs }) => [command, outcome, latencyMs]), [["undo", "applied", null]]);
  assert.deepEqual(state.instructions, []);
});

test("a story file that is played is told by the snapshot and by events", () => {
  const performance = { title: "two shots", state: "playing", opened: 1, num_shots: 2, following: "a bear", reason: "" };
  const joined = run(message(hello({}, { performance })));
  assert.deepEqual(joined.performance, performance);
  const over = reduce(joined, message({ kind: "performance", seq: 1, performance: { ...performance, state: "interrupted" } }));
  assert.equal(over.performance.state, "interrupted");
  assert.equal(run(message(hello())).performance, null);
});
