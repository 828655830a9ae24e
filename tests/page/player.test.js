import assert from "node:assert/strict";
import { test } from "node:test";

import { Player } from "../../src/shotstream/server/static/player.js";

const FPS = 16;

/** A media element that plays nothing: time moves when a test says so. */
class FakeVideo {
  currentTime = 0;
  paused = true;
  seeking = false;
  playbackRate = 1;
  src = "";
  seeks = [];
  requestVideoFrameCallback(callback) { this.frameCallback = callback; }
  play() { this.paused = false; return Promise.resolve(); }
  pause() { this.paused = true; }
  show(mediaFrame, at = 0) {
    this.currentTime = mediaFrame / FPS;
    this.frameCallback(at, { mediaTime: mediaFrame / FPS, expectedDisplayTime: at });
  }
}

/** Appends at once, and notes every range that was written. */
class FakeBuffer extends EventTarget {
  updating = false;
  ranges = [];
  removed = [];
  timestampOffset = 0;
  appendBuffer(bytes) {
    if (bytes.frames) this.ranges.push([this.timestampOffset * FPS, this.timestampOffset * FPS + bytes.frames]);
    this.finish();
  }
  remove(from, to) { this.removed.push([from * FPS, to * FPS]); this.finish(); }
  finish() {
    this.updating = true;
    queueMicrotask(() => { this.updating = false; this.dispatchEvent(new Event("updateend")); });
  }
}

async function playing() {
  const video = new FakeVideo();
  const buffer = new FakeBuffer();
  const source = Object.assign(new EventTarget(), { addSourceBuffer: () => buffer });
  const shown = [];
  const live = [];
  const starved = [];
  const clock = { now: 0 };
  const player = new Player(video, {
    mime: "", fps: FPS, openSource: () => source, now: () => clock.now,
    listeners: {
      shown: (one) => shown.push([one.segment.header.shot, one.segment.header.chunk, one.frame]),
      live: (one) => live.push(one),
      starved: (one) => starved.push(one),
    },
  });
  URL.createObjectURL = () => "blob:";
  URL.revokeObjectURL = () => {};
  player.init(new Uint8Array(1));
  source.dispatchEvent(new Event("sourceopen"));
  await settle();
  return { video, buffer, player, shown, live, starved, clock };
}

const settle = () => new Promise((done) => setTimeout(done, 0));
let sequence = 0;

async function feed(player, shot, chunk, start, fields = {}) {
  const numFrames = chunk === 0 ? 9 : 12;
  const header = { init: false, slate: false, newEpoch: chunk === 0, liveEdge: false, numFrames, shot, chunk, take: 0, sequence: sequence++, epoch: shot, start, ...fields };
  player.append(header, { frames: numFrames });
  await settle();
  return header;
}

function assertNothingOverwritten({ ranges }) {
  for (let index = 1; index < ranges.length; index += 1) assert.ok(ranges[index][0] >= ranges[index - 1][1], JSON.stringify(ranges));
}

test("chunks of one epoch follow one another without a seek", async () => {
  const { video, buffer, player } = await playing();
  await feed(player, 0, 0, 0);
  video.currentTime = 0.1;
  await feed(player, 0, 1, 9);
  await feed(player, 0, 2, 21);
  assert.deepEqual(buffer.ranges, [[0, 9], [9, 21], [21, 33]]);
  assert.equal(video.currentTime, 0.1);
  assert.equal(video.paused, false);
});

test("a cut is appended behind what is buffered and jumped to", async () => {
  const { video, buffer, player } = await playing();
  await feed(player, 0, 0, 0);
  await feed(player, 0, 1, 9);
  video.currentTime = 0.7;
  await feed(player, 1, 0, 14);
  assert.deepEqual(buffer.ranges.at(-1), [21, 30]);
  assert.equal(video.currentTime, 21 / FPS);
  assertNothingOverwritten(buffer);
});

test("the slate warms the decoder up, is never reported, and the story begins behind it", async () => {
  const { video, buffer, player, shown } = await playing();
  await feed(player, 0, 1, 0, { slate: true, newEpoch: false, numFrames: 12 });
  video.show(3);
  assert.deepEqual(shown, []);
  await feed(player, 0, 0, 0);
  assert.equal(video.currentTime, 12 / FPS);
  video.show(12);
  assert.deepEqual(shown, [[0, 0, 0]]);
  assertNothingOverwritten(buffer);
});

test("chunks that were left out leave no hole to fall into", async () => {
  const { buffer, player } = await playing();
  await feed(player, 0, 0, 0);
  await feed(player, 0, 3, 33);
  assert.deepEqual(buffer.ranges, [[0, 9], [9, 21]]);
});

test("the chunk on air that is sent again after a reconnect is not shown twice", async () => {
  const { buffer, player } = await playing();
  await feed(player, 0, 0, 0);
  const header = await feed(player, 0, 1, 9);
  player.append({ ...header, liveEdge: true }, { frames: 12 });
  await settle();
  assert.equal(buffer.ranges.length, 2);
});

test("nor is it where its shot has only just begun, while a new story with the same numbers is shown", async () => {
  const { buffer, player } = await playing();
  const header = await feed(player, 0, 0, 0);
  player.append({ ...header, liveEdge: true }, { frames: 9 });
  await settle();
  assert.equal(buffer.ranges.length, 1);
  player.append(header, { frames: 9 });
  await settle();
  assert.equal(buffer.ranges.length, 2);
});

test("every picture is named once, by its shot, chunk and place in the chunk", async () => {
  const { video, player, shown } = await playing();
  await feed(player, 0, 0, 0);
  await feed(player, 0, 1, 9);
  for (const frame of [8, 9, 9, 10]) video.show(frame);
  assert.deepEqual(shown, [[0, 0, 8], [0, 1, 0], [0, 1, 1]]);
});

test("a tab that was hidden returns to the newest chunk", async () => {
  const { video, player } = await playing();
  await feed(player, 0, 0, 0);
  for (let chunk = 1; chunk < 8; chunk += 1) await feed(player, 0, chunk, 9 + 12 * (chunk - 1));
  video.currentTime = 0.2;
  player.tick();
  assert.equal(video.currentTime, (9 + 12 * 6) / FPS);
});

test("looking back plays what was part of the story, skips what a cut made void, and ends live", async () => {
  const { video, player, live } = await playing();
  await feed(player, 0, 0, 0);
  await feed(player, 0, 1, 9);
  await feed(player, 1, 0, 14);
  assert.equal(player.lookBack(0, 0), true);
  assert.equal(video.currentTime, 0);
  video.currentTime = 13.5 / FPS;
  player.tick();
  assert.equal(video.currentTime, 13.5 / FPS, "frame 13 is the last that counts");
  video.currentTime = 14 / FPS;
  player.tick();
  assert.equal(video.currentTime, 21 / FPS);
  player.tick();
  assert.deepEqual(live, [false, true]);
});

test("while looking back, new chunks and cuts do not pull the viewer away", async () => {
  const { video, player } = await playing();
  await feed(player, 0, 0, 0);
  await feed(player, 0, 1, 9);
  player.lookBack(0, 0);
  await feed(player, 1, 0, 21);
  assert.equal(video.currentTime, 0);
  player.goLive();
  assert.equal(video.currentTime, 21 / FPS);
});

test("a shot that is no longer kept cannot be looked back at", async () => {
  const { player } = await playing();
  await feed(player, 4, 0, 0);
  assert.equal(player.lookBack(1, 0), false);
});

test("a pause stops the picture and a chunk that still comes in does not start it", async () => {
  const { video, player } = await playing();
  await feed(player, 0, 0, 0);
  player.setPaused(true);
  await feed(player, 0, 1, 9);
  assert.equal(video.paused, true);
  player.setPaused(false);
  assert.equal(video.paused, false);
});

test("a story of any length is kept in a bounded buffer", async () => {
  const { video, buffer, player } = await playing();
  await feed(player, 0, 0, 0);
  for (let chunk = 1; chunk < 400; chunk += 1) {
    video.currentTime = player.end / FPS - 0.2;
    await feed(player, 0, chunk, 9 + 12 * (chunk - 1));
  }
  assert.ok(buffer.removed.length > 0);
  assert.ok(player.segments.length * 0.75 < 280);
  assertNothingOverwritten(buffer);
});

test("chunks that keep coming early are caught up with gently", async () => {
  const { video, player } = await playing();
  await feed(player, 0, 0, 0);
  for (let chunk = 1; chunk < 9; chunk += 1) {
    video.currentTime = player.end / FPS - 0.6;
    await feed(player, 0, chunk, 9 + 12 * (chunk - 1));
  }
  player.tick();
  assert.ok(video.playbackRate > 1 && video.playbackRate < 1.1);
});

test("of shots with the same numbers in two branches the one at the given place of the story is looked back at", async () => {
  const { video, player } = await playing();
  await feed(player, 1, 0, 21, { epoch: 1 });
  await feed(player, 2, 0, 30, { epoch: 2 });
  await feed(player, 2, 0, 90, { epoch: 3 });
  assert.equal(player.lookBack(2, 0, 30), true);
  assert.equal(video.currentTime, 9 / FPS);
  assert.equal(player.lookBack(2, 0, 31), false);
});

test("where the story went back its last chunk is shown again, and what comes next is jumped to", async () => {
  const { video, buffer, player } = await playing();
  const first = await feed(player, 0, 0, 0);
  await feed(player, 1, 0, 9);
  await feed(player, 0, 0, 0, { sequence: first.sequence, newEpoch: true });
  assert.equal(video.currentTime, 18 / FPS);
  await feed(player, 0, 1, 20, { epoch: 2, newEpoch: true });
  assert.equal(video.currentTime, 27 / FPS);
  assertNothingOverwritten(buffer);
});

test("pictures that ran out for half a second are told, once, and so is that they come again", async () => {
  const { video, player, starved, clock } = await playing();
  /** Let the page tick for a while. */
  const wait = (ms) => { for (const until = clock.now + ms; clock.now < until; player.tick()) clock.now += 100; };
  player.isRolling = true;
  await feed(player, 0, 1, 0, { slate: true, newEpoch: false });
  video.currentTime = player.end / FPS;
  wait(2000);
  assert.deepEqual(starved, [], "before the first picture none can freeze");
  await feed(player, 0, 0, 0);
  wait(2000);
  assert.deepEqual(starved, [], "there is something to play");
  video.currentTime = (player.end - 1) / FPS;
  wait(500);
  assert.deepEqual(starved, [], "the next chunk may still be in time");
  wait(2000);
  assert.deepEqual(starved, [true]);
  await feed(player, 0, 1, 9);
  wait(200);
  assert.deepEqual(starved, [true, false]);
});

test("nobody waits for pictures that are not made: paused, or the shot has run its length", async () => {
  const { video, player, starved, clock } = await playing();
  await feed(player, 0, 0, 0);
  video.currentTime = player.end / FPS;
  for (; clock.now < 2000; clock.now += 100) player.tick();
  player.isRolling = true;
  player.setPaused(true);
  for (; clock.now < 4000; clock.now += 100) player.tick();
  player.setPaused(false);
  player.tick();
  assert.deepEqual(starved, [], "half a second counts from when they are due");
});
