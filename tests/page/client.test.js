import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { Client } from "../../src/shotstream/server/static/client.js";
import { readMedia } from "../../src/shotstream/server/static/protocol.js";
import { captionHash, readBarcode } from "./barcode.js";

class FakeSocket {
  sent = [];
  send(data) { this.sent.push(JSON.parse(data)); }
  close() { this.isClosed = true; }
}

function connected({ now = () => 0 } = {}) {
  const sockets = [];
  const phases = [];
  const reasons = [];
  const media = [];
  const client = new Client({
    url: "ws://x/ws", story: "main", token: "secret",
    now,
    openSocket: () => { sockets.push(new FakeSocket()); return sockets.at(-1); },
    listeners: { message: () => {}, media: (header) => media.push(header), connection: ({ phase, reason }) => { phases.push(phase); reasons.push(reason); } },
  });
  client.connect();
  sockets[0].onopen();
  return { client, sockets, phases, reasons, media };
}

const hello = (seq, replayed = 0, state = "live") => JSON.stringify({ kind: "hello", seq, replayed, snapshot: { status: { state } } });
const status = (seq, state = "live") => JSON.stringify({ kind: "status", seq, state });

function mediaMessage({ flags = 0, numFrames = 12, sequence = 5, payload = [7, 8] }) {
  const view = new DataView(new ArrayBuffer(28 + payload.length));
  view.setUint8(0, 1);
  view.setUint8(1, flags);
  view.setUint16(2, numFrames, true);
  [3, 4, 1, sequence, 6, 700].forEach((value, index) => view.setUint32(4 + 4 * index, value, true));
  new Uint8Array(view.buffer).set(payload, 28);
  return view.buffer;
}

test("joins first, with the token in the message and not in the address", () => {
  const { sockets, client } = connected();
  assert.deepEqual(sockets[0].sent, [{ kind: "join", protocol: 1, story: "main", token: "secret" }]);
  assert.ok(!client.url.includes("secret"));
});

test("a lost connection is taken up again from the last event seen", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { sockets, phases } = connected();
  sockets[0].onmessage({ data: hello(4) });
  sockets[0].onmessage({ data: status(5) });
  sockets[0].onclose({ code: 1006, reason: "" });
  mock.timers.tick(1000);
  sockets[1].onopen();
  assert.equal(sockets[1].sent[0].resume_from, 5);
  assert.deepEqual(phases, ["connecting", "open", "waiting", "connecting"]);
  mock.timers.reset();
});

test("a second break among replayed events loses none of them", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { sockets } = connected();
  sockets[0].onmessage({ data: hello(4) });
  sockets[0].onclose({ code: 1006, reason: "" });
  mock.timers.tick(1000);
  sockets[1].onopen();
  sockets[1].onmessage({ data: hello(9, 5) });
  sockets[1].onmessage({ data: status(5) });
  sockets[1].onclose({ code: 1006, reason: "" });
  mock.timers.tick(2000);
  sockets[2].onopen();
  assert.equal(sockets[2].sent[0].resume_from, 5);
  mock.timers.reset();
});

test("after a sleep nothing old is played: the page joins again where it was", () => {
  let time = 0;
  const { sockets, media, client } = connected({ now: () => time });
  sockets[0].onmessage({ data: hello(4) });
  time += 700;
  sockets[0].onmessage({ data: mediaMessage({}) });
  time += 2500;
  sockets[0].onmessage({ data: mediaMessage({ sequence: 6 }) });
  assert.equal(media.length, 1, "what waited in the socket is old");
  assert.ok(sockets[0].isClosed);
  sockets[1].onopen();
  assert.equal(sockets[1].sent[0].resume_from, 4);
  sockets[1].onmessage({ data: hello(9, 5) });
  sockets[1].onmessage({ data: mediaMessage({ sequence: 9 }) });
  assert.equal(media.length, 2);
  client.drop();
});

test("a story that was late when it was joined is listened to as well", () => {
  let time = 0;
  const { sockets, client } = connected({ now: () => time });
  sockets[0].onmessage({ data: hello(4, 0, "late") });
  for (let beat = 0; beat < 8; beat += 1) {
    time += 500;
    client.beat();
  }
  sockets[0].onmessage({ data: mediaMessage({}) });
  assert.equal(sockets.length, 1, "late chunks are no sleep");
  for (let beat = 0; beat < 12; beat += 1) {
    time += 500;
    client.beat();
  }
  sockets[0].onmessage({ data: mediaMessage({ sequence: 6 }) });
  assert.equal(sockets.length, 2);
  client.drop();
});

test("a story that waits for direction may be silent for as long as it likes", () => {
  let time = 0;
  const { sockets, client } = connected({ now: () => time });
  sockets[0].onmessage({ data: hello(4) });
  sockets[0].onmessage({ data: status(5, "holding") });
  for (let beat = 0; beat < 20; beat += 1) {
    time += 500;
    client.beat();
  }
  sockets[0].onmessage({ data: status(6) });
  assert.equal(sockets.length, 1);
  time += 100;
  sockets[0].onmessage({ data: status(7, "holding") });
  time += 5000;  // no beat: the page itself stood still
  sockets[0].onmessage({ data: mediaMessage({}) });
  assert.equal(sockets.length, 2);
  client.drop();
});

test("a hidden page whose timers rest stays where it is: a story that stands still is heard of every two seconds", () => {
  let time = 0;
  const { sockets, client } = connected({ now: () => time });
  sockets[0].onmessage({ data: hello(4, 0, "holding") });
  for (let count = 0; count < 5; count += 1) {
    time += 2100;
    sockets[0].onmessage({ data: JSON.stringify({ kind: "metrics" }) });
  }
  assert.equal(sockets.length, 1);
  client.drop();
});

test("a restarted server counts from the beginning", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { sockets, client } = connected();
  sockets[0].onmessage({ data: hello(400) });
  sockets[0].onclose({ code: 1006, reason: "" });
  mock.timers.tick(1000);
  sockets[1].onopen();
  sockets[1].onmessage({ data: hello(2) });
  assert.equal(client.lastSeq, 2);
  mock.timers.reset();
});

test("a live story that falls silent is a lost connection; an idle one is not", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { sockets, phases } = connected();
  sockets[0].onmessage({ data: hello(1) });
  sockets[0].onmessage({ data: status(2, "idle") });
  mock.timers.tick(8000);
  assert.equal(phases.at(-1), "open");
  sockets[0].onmessage({ data: status(3, "live") });
  mock.timers.tick(8000);
  assert.equal(phases.at(-1), "waiting");
  mock.timers.tick(1000);
  assert.equal(sockets.length, 2, "and is opened again");
  mock.timers.reset();
});

test("a command that nobody answers is a lost connection too", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { sockets, phases, client } = connected();
  sockets[0].onmessage({ data: hello(1) });
  sockets[0].onmessage({ data: status(2, "holding") });
  client.send({ kind: "extend", id: "a" });
  mock.timers.tick(8000);
  assert.equal(phases.at(-1), "waiting");
  mock.timers.reset();
});

test("a refusal is final and says why", () => {
  const { sockets, phases, reasons } = connected();
  sockets[0].onmessage({ data: JSON.stringify({ kind: "error", fatal: true, message: "of another version: reload the page", code: "bad_message", id: "" }) });
  assert.equal(phases.at(-1), "refused");
  assert.match(reasons.at(-1), /reload the page/);
  assert.ok(sockets[0].isClosed);
});

test("who came by a link that was revoked reads that, and not that the server has a token", () => {
  const { sockets, reasons } = connected();
  sockets[0].onmessage({ data: JSON.stringify({ kind: "error", fatal: true, message: "this server needs its token", code: "unauthorized", id: "" }) });
  assert.match(reasons.at(-1), /not valid, or not any more/);
});

test("chunks are acknowledged, the init segment is not", () => {
  const { sockets, media } = connected();
  sockets[0].onmessage({ data: mediaMessage({ flags: 1 }) });
  sockets[0].onmessage({ data: mediaMessage({ flags: 4 }) });
  assert.deepEqual(sockets[0].sent.slice(1), [{ kind: "ack", sequence: 5 }]);
  assert.equal(media.length, 2);
});

test("nothing is sent without a connection", () => {
  const { client, sockets } = connected();
  assert.equal(client.send({ kind: "pause", id: "a" }), false);
  assert.equal(sockets[0].sent.length, 1);
});

test("a media message is read as the server packs it", () => {
  const { header, payload } = readMedia(mediaMessage({ flags: 12, numFrames: 9 }));
  assert.deepEqual(header, {
    init: false, slate: false, newEpoch: true, liveEdge: true, numFrames: 9, shot: 3, chunk: 4, take: 1, sequence: 5, epoch: 6, start: 700,
  });
  assert.deepEqual([...payload], [7, 8]);
});

const skip = process.env.BARCODE ? false : "the barcode is drawn by the Python test that starts this one";

test("barcodes drawn in Python are read here, at any size", { skip }, () => {
  // Story 7, shot 41, take 3, chunk 12, frame 9001, "a fox on the beach".
  const rows = JSON.parse(process.env.BARCODE);
  for (const scale of [4, 10, 37]) {
    const [width, height] = [32 * scale, 3 * scale];
    const data = new Uint8Array(4 * width * height);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) data.fill(rows[Math.floor(y / scale)][Math.floor(x / scale)], 4 * (y * width + x), 4 * (y * width + x) + 4);
    }
    const expected = { story: 7, shot: 41, take: 3, chunk: 12, frame: 9001, caption: captionHash("a fox on the beach") };
    assert.deepEqual(readBarcode({ data, width, height }), expected);
  }
});
