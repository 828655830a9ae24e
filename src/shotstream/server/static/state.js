// @ts-check
/**
 * What the page knows, as a pure function of what happened: `reduce(state, action) -> state`. No DOM, no clock, no socket.
 *
 * An instruction's way: `sent` (typed here) -> `accepted` (the server has it) -> `ended` (it names the chunk where it took
 * effect) -> `presented` (that chunk's first picture is on this screen): only then the receipt appears.
 *
 * @typedef {import("./protocol.js").ServerMessage} ServerMessage
 * @typedef {import("./protocol.js").Hello} Hello
 * @typedef {import("./protocol.js").StoryEvent} StoryEvent
 * @typedef {import("./protocol.js").Status} Status
 * @typedef {import("./protocol.js").RememberedFrame} RememberedFrame
 * @typedef {import("./protocol.js").ShotCard} ShotCard
 * @typedef {import("./protocol.js").Take} Take
 * @typedef {import("./protocol.js").Ended} Ended
 * @typedef {import("./client.js").Connection} Connection
 *
 * @typedef {Object} Instruction
 * @property {string} id
 * @property {string} command
 * @property {string} text
 * @property {boolean} mine       typed on this page
 * @property {"sent" | "accepted" | "coming"} stage   coming: it took effect in a chunk that is not on screen yet
 * @property {number | null} sentAt   page clock, ms
 * @property {Ended | null} ended
 * @property {number | null} sequence   of the chunk in which it took effect
 *
 * @typedef {Object} Receipt
 * @property {string} id
 * @property {string} command
 * @property {string} text
 * @property {boolean} mine
 * @property {"applied" | "superseded" | "failed"} outcome
 * @property {number | null} shot
 * @property {number | null} chunk
 * @property {string} reason
 * @property {string[]} leftOut
 * @property {number | null} latencyMs   from the key press to the picture
 * @property {number} at          page clock, ms
 *
 * @typedef {Object} OnScreen
 * @property {number} shot
 * @property {number} chunk
 * @property {number} take
 * @property {number} epoch
 * @property {number} sequence
 *
 * @typedef {Object} State
 * @property {Connection} connection
 * @property {number} seq
 * @property {"director" | "watcher"} role
 * @property {string} story
 * @property {import("./protocol.js").PresetInfo | null} preset
 * @property {string} writer
 * @property {Omit<Status, "kind" | "seq">} status
 * @property {string} globalCaption
 * @property {ShotCard[]} shots            of the way that is live
 * @property {number | null} head          the take in which the story goes on
 * @property {Take[]} takes                the whole tree
 * @property {Instruction[]} instructions   not yet seen to take effect
 * @property {{left: number, unsure: string[]}} missed   how many missed events are still to come, and whose ending they may hold
 * @property {Receipt[]} receipts           newest last
 * @property {RememberedFrame[]} memory
 * @property {import("./protocol.js").Performance | null} performance   the story file that is played, or was last
 * @property {Record<number, string>} captions   of the newest chunks, by sequence
 * @property {OnScreen | null} onScreen
 * @property {string} caption               in force in the picture on screen
 * @property {string[]} leftOut             parts of it that did not fit into the text encoder
 * @property {number | null} latencyMs      of the newest instruction seen to take effect
 * @property {import("./protocol.js").Metrics | null} metrics
 * @property {number} framesPerSecond       presented here
 * @property {boolean} lookingBack
 * @property {boolean} starved             the picture stands still because no more have come
 * @property {string} unsupported           why this browser cannot play, or empty
 * @property {{code: string, reason: string} | null} refused   why the server will not have us
 * @property {string} waitsBecause          why it will not have us yet, or empty
 *
 * @typedef {{type: "connection", connection: Connection}
 *   | {type: "message", message: ServerMessage, now: number}
 *   | {type: "sent", id: string, command: string, text: string, now: number}
 *   | {type: "presented", onScreen: OnScreen, live: boolean, now: number}
 *   | {type: "rate", framesPerSecond: number}
 *   | {type: "thumbnail", shot: number, take: number, thumbnail: string}
 *   | {type: "lookBack", on: boolean}
 *   | {type: "starved", on: boolean}
 *   | {type: "unsupported", reason: string}} Action
 */

const KEPT_RECEIPTS = 50;
const KEPT_CAPTIONS = 32;
const KEPT_SHOTS = 500;
/** Commands that show in the picture; the others are done when the server says so. */
const VISIBLE = new Set(["start", "cut", "steer", "branch", "retake"]);
/** Commands that lead elsewhere in the tree: their receipts are worth a line even where no new chunk comes of them. */
const GOES_BACK = new Set(["branch", "retake", "undo"]);

/** @type {State["status"]} */
const SILENT = {
  state: "idle", detail: "", late_ms: 0, queue_position: null, clock_frame: 0, clock_running: false,
};

/** @type {Readonly<State>} */
export const INITIAL = Object.freeze({
  connection: { phase: /** @type {const} */ ("connecting") },
  seq: 0,
  role: /** @type {const} */ ("director"),
  story: "",
  preset: null,
  writer: "",
  status: SILENT,
  globalCaption: "",
  shots: [],
  head: null,
  takes: [],
  instructions: [],
  missed: { left: 0, unsure: [] },
  receipts: [],
  memory: [],
  performance: null,
  captions: {},
  onScreen: null,
  caption: "",
  leftOut: [],
  latencyMs: null,
  metrics: null,
  framesPerSecond: 0,
  lookingBack: false,
  starved: false,
  unsupported: "",
  refused: null,
  waitsBecause: "",
});

/**
 * @param {State} state
 * @param {Action} action
 * @returns {State}
 */
export function reduce(state, action) {
  switch (action.type) {
    case "connection":
      return connected(state, action.connection);
    case "message":
      return received(state, action.message, action.now);
    case "sent":
      return sent(state, action);
    case "presented":
      return presented(state, action);
    case "rate":
      return { ...state, framesPerSecond: action.framesPerSecond };
    case "thumbnail":
      return withShot(state, action.shot, (card) =>
        card.take === action.take && !card.thumbnail ? { ...card, thumbnail: action.thumbnail } : card);
    case "lookBack":
      return { ...state, lookingBack: action.on };
    case "starved":
      return { ...state, starved: action.on };
    case "unsupported":
      return { ...state, unsupported: action.reason };
  }
}

/** @param {State} state @param {Connection} connection @returns {State} */
function connected(state, connection) {
  const { phase, code = "", reason = "The server refused this page." } = connection;
  const waitsBecause = phase === "waiting" ? connection.reason ?? "" : phase === "connecting" ? state.waitsBecause : "";
  return { ...state, connection, waitsBecause, refused: phase === "refused" ? { code, reason } : null };
}

/** @param {State} state @param {ServerMessage} message @param {number} now @returns {State} */
function received(state, message, now) {
  switch (message.kind) {
    case "hello":
      return welcomed(state, message, now);
    case "metrics":
      return { ...state, metrics: message };
    case "error":
      return refusedCommand(state, message, now);
    case "gap":
      return state;
    default:
      return afterMissed(happened(state, message, now), now);
  }
}

/** The snapshot is the truth; only what is on this screen, and the instructions of this page, live on.
 * @param {State} state @param {Hello} hello @param {number} now @returns {State} */
function welcomed(state, hello, now) {
  const { snapshot } = hello;
  const own = new Map(state.instructions.map((one) => [one.id, one]));
  const pending = snapshot.pending.map(({ id, command, text }) => {
    const known = own.get(id);
    own.delete(id);
    return instruction({ ...known, id, command, text, stage: "accepted" });
  });
  const missed = { left: hello.replayed, unsure: [...own.keys()] };
  /** @type {State} */
  const next = {
    ...state,
    seq: hello.seq,
    role: hello.role,
    story: hello.story,
    preset: hello.preset,
    writer: hello.writer,
    status: snapshot.status,
    globalCaption: snapshot.global_caption,
    shots: keepThumbnails(snapshot.shots, state.shots),
    head: snapshot.head,
    takes: snapshot.takes,
    memory: snapshot.memory,
    leftOut: snapshot.left_out ?? [],
    performance: snapshot.performance ?? null,
    instructions: [...own.values(), ...pending],
    missed,
  };
  return hello.replayed ? next : withoutLost(next, now);
}

/** Count what is sent again. @param {State} state @param {number} now @returns {State} */
function afterMissed(state, now) {
  const { left, unsure } = state.missed;
  if (!left) return state;
  const next = { ...state, missed: { left: left - 1, unsure } };
  return left > 1 ? next : withoutLost(next, now);
}

/** What is neither pending nor was replayed never reached the server, or ended long ago.
 * @param {State} state @param {number} now @returns {State} */
function withoutLost(state, now) {
  const lost = state.instructions.filter((one) => state.missed.unsure.includes(one.id) && one.stage !== "coming");
  const next = { ...state, instructions: state.instructions.filter((one) => !lost.includes(one)) };
  const why = "lost with the connection: send it again";
  return lost.filter(({ mine }) => mine).reduce((all, one) => withReceipt(all, receipt(one, "failed", now, why)), next);
}

/** @param {ShotCard[]} cards @param {ShotCard[]} before */
function keepThumbnails(cards, before) {
  const known = new Map(before.map((card) => [`${card.start}/${card.shot}/${card.take}`, card.thumbnail]));
  return cards.map((card) => ({ ...card, thumbnail: card.thumbnail || known.get(`${card.start}/${card.shot}/${card.take}`) || "" }));
}

/** A story event. One that the snapshot holds already only tells what became of our own instructions.
 * @param {State} state @param {StoryEvent} event @param {number} now @returns {State} */
function happened(state, event, now) {
  const replayed = event.seq <= state.seq;
  if (event.kind === "accepted") return replayed ? state : accepted(state, event);
  if (event.kind === "ended") return ended(state, event, now, replayed);
  if (replayed) return state;
  const next = { ...state, seq: event.seq };
  switch (event.kind) {
    case "shot_opened":
      return shotOpened(next, event);
    case "chunk":
      return chunkReady(next, event);
    case "tree":
      return treeChanged(next, event);
    case "memory":
      return { ...next, memory: event.frames };
    case "performance":
      return { ...next, performance: event.performance };
    case "status":
      return { ...next, status: event };
  }
}

/** @param {Partial<Instruction> & {id: string, command: string, text: string}} known @returns {Instruction} */
function instruction(known) {
  return { mine: false, stage: "sent", sentAt: null, ended: null, sequence: null, ...known };
}

/** @param {State} state @param {{id: string, command: string, text: string, now: number}} action @returns {State} */
function sent(state, { id, command, text, now }) {
  const fresh = instruction({ id, command, text, mine: true, sentAt: now });
  return { ...state, instructions: [...state.instructions, fresh] };
}

/** @param {State} state @param {import("./protocol.js").Accepted & {seq: number}} event @returns {State} */
function accepted(state, { id, command, text, seq }) {
  const known = state.instructions.find((one) => one.id === id);
  const taken = instruction({ ...known, id, command, text: text || known?.text || "", stage: "accepted" });
  return { ...state, seq, instructions: [...without(state, id), taken] };
}

/** @param {State} state @param {Ended & {seq: number}} event @param {number} now @param {boolean} replayed
 * @returns {State} */
function ended(state, event, now, replayed) {
  const next = { ...state, seq: Math.max(state.seq, event.seq) };
  const known = state.instructions.find((one) => one.id === event.id);
  const one = instruction({ ...known, id: event.id, command: event.command, text: known?.text ?? "", ended: event });
  const marked = event.command === "steer" && event.outcome === "applied" && !replayed ? withSteer(next, one, event) : next;
  const goesOn = event.command === "branch" && event.chunk !== 0; // with what is there: no chunk names it
  if (event.outcome === "applied" && VISIBLE.has(event.command) && event.shot !== null && !goesOn) {
    if (replayed && !one.mine) return marked;
    return arriving({ ...marked, instructions: [...without(marked, event.id), { ...one, stage: "coming" }] }, now);
  }
  const wentBack = event.outcome === "applied" && GOES_BACK.has(event.command);
  const leftOut = wentBack ? event.left_out : marked.leftOut;
  const closed = { ...marked, leftOut, instructions: without(marked, event.id) };
  const worthSaying = event.outcome !== "applied" || event.reason || wentBack;
  const seen = { ...receipt(one, event.outcome, now, event.reason), latencyMs: null };
  return worthSaying && known ? withReceipt(closed, seen) : closed;
}

/** @param {State} state @param {Instruction} one @param {Ended} event @returns {State} */
function withSteer(state, one, event) {
  if (event.shot === null || event.chunk === null) return state;
  const mark = { id: event.id, chunk: event.chunk, first_frame: event.first_frame ?? 0, text: one.text };
  return withShot(state, event.shot, (card) => ({ ...card, steers: [...card.steers, mark] }));
}

/** @param {State} state @param {import("./protocol.js").ShotOpened} event @returns {State} */
function shotOpened(state, event) {
  const { node, shot, take, start, text, caption, num_chunks, context, thumbnail } = event;
  const card = { node, shot, take, start, text, caption, num_chunks, made_chunks: 0, context, steers: [], thumbnail };
  const earlier = state.shots.filter((one) => one.shot < shot).slice(1 - KEPT_SHOTS);
  // A shot that opens where steers were announced before it must not lose them.
  const before = state.shots.find((one) => one.shot === shot && one.take === take && one.start === start);
  const opened = {
    node, parent: event.parent, parent_frames: event.aired_before, origin: null, shot, take, text, caption, num_chunks,
    made_chunks: 0, hidden: false, live: true, thumbnail,
  };
  const shots = [...earlier, before ? { ...card, steers: before.steers } : card];
  return { ...state, shots, head: node, takes: withTakes(state.takes, [opened], node) };
}

/** The story went back, or takes were hidden.
 * @param {State} state @param {import("./protocol.js").TreeChanged} event @returns {State} */
function treeChanged(state, event) {
  const shots = event.shots === null ? state.shots : keepThumbnails(event.shots, state.shots);
  return { ...state, shots, head: event.head, takes: withTakes(state.takes, event.takes, event.head) };
}

/** The tree with some takes new or changed, those that lead to `head` marked as live.
 * @param {Take[]} takes @param {Take[]} changed @param {number | null} head @returns {Take[]} */
function withTakes(takes, changed, head) {
  const all = new Map([...takes, ...changed].map((one) => [one.node, one]));
  const path = new Set();
  for (let node = head; node !== null && !path.has(node); node = all.get(node)?.parent ?? null) path.add(node);
  return [...all.values()].map((one) => ({ ...one, live: path.has(one.node) }));
}

/** @param {State} state @param {import("./protocol.js").ChunkReady} event @returns {State} */
function chunkReady(state, event) {
  const recent = Object.entries(state.captions).slice(1 - KEPT_CAPTIONS);
  const captions = Object.fromEntries([...recent, [event.sequence, event.caption]]);
  const lengths = { made_chunks: event.chunk + 1, num_chunks: event.num_chunks };
  const takes = state.takes.map((one) => (one.node === event.node ? { ...one, ...lengths } : one));
  const instructions = state.instructions.map((one) => (event.applied.includes(one.id) ? { ...one, sequence: event.sequence } : one));
  return withShot({ ...state, captions, takes, instructions }, event.shot, (card) => ({
    ...card,
    made_chunks: Math.max(card.made_chunks, event.chunk + 1),
    num_chunks: event.num_chunks,
  }));
}

/** @param {State} state @param {import("./protocol.js").ServerError} error @param {number} now @returns {State} */
function refusedCommand(state, error, now) {
  if (error.fatal) return state;
  const known = state.instructions.find((one) => one.id === error.id);
  const one = known ?? instruction({ id: error.id, command: "", text: "" });
  return withReceipt({ ...state, instructions: without(state, error.id) }, receipt(one, "failed", now, error.message));
}

/** @param {State} state @param {{onScreen: OnScreen, live: boolean, now: number}} action @returns {State} */
function presented(state, { onScreen, live, now }) {
  const caption = state.captions[onScreen.sequence] ?? (live ? state.caption : cardOf(state, onScreen.shot)?.caption) ?? "";
  const next = { ...state, onScreen, caption };
  return live ? arriving(next, now) : next;
}

/** Give receipts to the instructions whose chunk has reached the screen.
 * @param {State} state @param {number} now @returns {State} */
function arriving(state, now) {
  const { onScreen } = state;
  if (onScreen === null || state.lookingBack) return state;
  const arrived = state.instructions.filter((one) => one.stage === "coming" && isShown(one, onScreen));
  return arrived.reduce((all, one) => arrive(all, one, now), state);
}

/** @param {Instruction} one @param {OnScreen} onScreen */
function isShown({ ended: event, sequence }, onScreen) {
  if (sequence !== null) return onScreen.sequence >= sequence;
  if (event === null || event.shot === null || event.chunk === null) return false;
  return onScreen.shot > event.shot || (onScreen.shot === event.shot && onScreen.chunk >= event.chunk);
}

/** @param {State} state @param {Instruction} one @param {number} now @returns {State} */
function arrive(state, one, now) {
  const leftOut = one.ended?.left_out ?? [];
  const shown = withReceipt({ ...state, leftOut, instructions: without(state, one.id) }, receipt(one, "applied", now, one.ended?.reason));
  const latencyMs = one.sentAt === null ? state.latencyMs : now - one.sentAt;
  return { ...shown, latencyMs };
}

/** @param {Instruction} one @param {Receipt["outcome"]} outcome @param {number} now @param {string} [reason]
 * @returns {Receipt} */
function receipt(one, outcome, now, reason = "") {
  const { id, command, text, mine, sentAt, ended: event } = one;
  const latencyMs = outcome === "applied" && sentAt !== null ? now - sentAt : null;
  return {
    id, command, text, mine, outcome, reason, latencyMs,
    shot: event?.shot ?? null, chunk: event?.chunk ?? null, leftOut: event?.left_out ?? [], at: now,
  };
}

/** @param {State} state @param {Receipt} one @returns {State} */
function withReceipt(state, one) {
  return { ...state, receipts: [...state.receipts, one].slice(-KEPT_RECEIPTS) };
}

/** @param {State} state @param {string} id */
function without(state, id) {
  return state.instructions.filter((one) => one.id !== id);
}

/** @param {State} state @param {number} shot @param {(card: ShotCard) => ShotCard} change @returns {State} */
function withShot(state, shot, change) {
  return { ...state, shots: state.shots.map((card) => (card.shot === shot ? change(card) : card)) };
}

/** Whether what is typed is taken: by the story, or as the first shot of one. @param {State} state */
export const isReady = ({ status }) => !["loading", "warming", "queued"].includes(status.state);

/** Whether there is a story to direct. @param {State} state */
export const isRunning = (state) => isReady(state) && !["idle", "error"].includes(state.status.state);

/** What is said where no picture is remembered; empty where some are. @param {State} state */
export function withoutMemory(state) {
  if (state.memory.length) return "";
  // After a restart nobody has looked yet: the engine does when the story goes on.
  if (state.shots.length && (state.status.state === "paused" || !isReady(state))) return "To be seen again when the story goes on.";
  return "Nothing yet. From the second shot on, pictures of earlier shots keep people and places alike.";
}

/** Whether the story waits for a free place. @param {State} state */
export const isQueued = ({ status }) => status.state === "queued";

/** What can be taken back from here: one's own, and what waits in the queue, where only one does, typed before a reload.
 * @param {State} state */
export function newestOpen(state) {
  return state.instructions.findLast(({ stage, mine }) => stage !== "coming" && (mine || isQueued(state)));
}

/** @param {State} state @param {number} shot */
export function cardOf(state, shot) {
  return state.shots.findLast((card) => card.shot === shot);
}

/**
 * The one thing to tell about how it is going: what the badge says, and what lies over the picture.
 *
 * @typedef {"live" | "late" | "holding" | "paused" | "back" | "wait" | "bad" | "idle"} Mood
 * @param {State} state
 * @returns {{mood: Mood, badge: string, title: string, help: string}} title is empty while a picture is shown; help is then a remark on it
 */
export function situation(state) {
  const { connection, status } = state;
  if (state.unsupported) {
    return overlay("bad", "Cannot play", "This browser cannot play the stream", state.unsupported);
  }
  if (state.refused?.code === "unauthorized") return overlay("bad", "Log in", "This server asks who you are", state.refused.reason);
  if (state.refused) return overlay("bad", "Refused", "The server refused this page", state.refused.reason);
  if (connection.phase !== "open" && state.waitsBecause) {
    return overlay("wait", "Waiting", "Not yet", `${state.waitsBecause}. Trying again by itself.`);
  }
  if (connection.phase === "waiting" || (connection.phase === "connecting" && state.preset !== null)) {
    return overlay("wait", "Reconnecting", "Connection lost", "Trying again by itself. The story goes on; you return to it live.");
  }
  if (state.preset === null) return overlay("wait", "Connecting", "Connecting", "");
  if (state.lookingBack) return { mood: "back", badge: "Looking back", title: "", help: "" };
  return ofStatus(state, status);
}

/** @param {State} state @param {State["status"]} status @returns {ReturnType<typeof situation>} */
function ofStatus(state, status) {
  switch (status.state) {
    case "idle":
      return state.role === "director"
        ? overlay("idle", "Ready", "What do we see first?", "Describe a shot and press Enter. It plays within a second.")
        : overlay("idle", "Ready", "Nothing is on air", "The picture appears when the director begins.");
    case "loading":
      return overlay("wait", "Loading", "Loading the model", status.detail);
    case "warming":
      return overlay("wait", "Warming up", "Warming up", status.detail || "The first chunks are made for nobody, so that yours come fast.");
    case "queued":
      return overlay("wait", "In the queue", `Number ${status.queue_position ?? "?"} in the queue`, "All live places are taken. Keep this page open: it starts by itself.");
    case "late":
      return { mood: "late", badge: status.late_ms >= 50 ? `Late ${(status.late_ms / 1000).toFixed(1)} s` : "Late", title: "", help: "" };
    case "holding":
      return { mood: "holding", badge: "Waiting for direction", title: "", help: "" };
    case "paused":
      return { mood: "paused", badge: "Paused", title: "", help: sentence(status.detail) };
    case "error":
      return overlay("bad", "Error", "The engine stopped", `${sentence(status.detail) || "It gave no reason."} Begin again with a first shot; if that fails, restart the server and look at its log.`);
    case "live":
      return state.starved
        ? { mood: "wait", badge: "Waiting for video", title: "", help: "" }
        : { mood: "live", badge: "Live", title: "", help: "" };
  }
}

/** What the server says, for people. @param {string} words */
export const sentence = (words) => words && words.charAt(0).toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");

/** @param {Mood} mood @param {string} badge @param {string} title @param {string} help */
function overlay(mood, badge, title, help) {
  return { mood, badge, title, help };
}

/** Why a remembered frame is remembered, for people.
 * @param {RememberedFrame} frame */
export function reasonOf(frame) {
  const shot = `Shot ${frame.shot + 1}`;
  return {
    allotted: `${shot} · its share`,
    matches: `${shot} · fits the caption`,
    pinned: `${shot} · pinned`,
    picture: "Your picture",
  }[frame.reason];
}
