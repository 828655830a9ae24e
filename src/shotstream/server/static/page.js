// @ts-check
/** The page: wires socket, player and state together, turns keys and clicks into commands, and draws on every change. */

import { admit, exported } from "./api.js";
import { Client } from "./client.js";
import { Film } from "./film.js";
import { announce, tell } from "./note.js";
import { Panels } from "./panels.js";
import { takePictures } from "./picture.js";
import { Player } from "./player.js";
import { INITIAL, cardOf, isQueued, isReady, isRunning as runs, newestOpen, reduce, situation, withoutMemory } from "./state.js";
import * as views from "./views.js";

/** @typedef {import("./protocol.js").ShotCard} ShotCard */
/** @typedef {import("./protocol.js").RememberedFrame} RememberedFrame */

const TICK_MS = 200;
const LEAVE = "Leave the queue";
const HISTORY_KEY = "shotstream.history";
const HISTORY_LENGTH = 100;
const SUGGESTIONS_SHOWN = 5;
/** How the ids of a story file's commands begin: what comes of them is told beside its title. */
const PLAYED = "play-";

/** @template {HTMLElement} T @param {string} id @returns {T} */
const byId = (id) => /** @type {T} */ (document.getElementById(id));

const video = /** @type {HTMLVideoElement} */ (byId("video"));
const stage = byId("stage");
const prompt = /** @type {HTMLInputElement} */ (byId("prompt"));
const buttons = /** @type {Record<string, HTMLButtonElement>} */ (Object.fromEntries(
  ["steer", "cut", "pause", "extend", "stop", "help", "live", "png", "film", "full", "add", "cover-action"].map((id) => [id, byId(id)]),
));

// --------------------------------------------------------------------------------------------------------------------
// State

let state = INITIAL;
let drawn = 0;
/** @type {Player | null} */
let player = null;
/** @type {Film | null} */
let film = null;
let lastCommand = 0;

/** @param {import("./state.js").Action} action */
function dispatch(action) {
  const before = state;
  state = reduce(state, action);
  if (state === before) return;
  announceChanges(before);
  if (!drawn) drawn = requestAnimationFrame(draw);
}

// --------------------------------------------------------------------------------------------------------------------
// Connection

/** Where to join: the part behind # never leaves the browser, so that a token in a link is in no log. */
function address() {
  const given = new URLSearchParams(location.hash.slice(1));
  const token = given.get("token") ?? sessionStorage.getItem("shotstream.token") ?? "";
  if (given.has("token")) {
    sessionStorage.setItem("shotstream.token", token);
    given.delete("token");
    history.replaceState(null, "", `${location.pathname}${given.size ? `#${given}` : ""}`);
  }
  const url = new URL("/ws", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  return { url: url.href, story: given.get("story") ?? "main", token };
}

const client = new Client({
  ...address(),
  listeners: {
    message: (message) => {
      if (message.kind === "hello") prepare(message.preset);
      if (message.kind === "hello" && message.role === "director" && client.token) admit(client.token);
      dispatch({ type: "message", message, now: performance.now() });
      if (message.kind === "status") follow(message.state);
      if (message.kind === "hello") follow(message.snapshot.status.state);
    },
    media: (header, payload) => {
      if (header.init) {
        film ??= new Film(payload, state.preset?.fps ?? 16);
        player?.init(payload);
        return;
      }
      player?.append(header, payload);
      if (!header.slate) film?.add(header, payload);
    },
    connection: (connection) => dispatch({ type: "connection", connection }),
  },
});

/** @param {import("./protocol.js").PresetInfo} preset */
function prepare(preset) {
  if (player !== null) return;
  document.documentElement.style.setProperty("--shape", `${preset.width} / ${preset.height}`);
  document.documentElement.style.setProperty("--ratio", String(preset.width / preset.height));
  const reason = Player.unsupported(preset.mime);
  if (reason) {
    dispatch({ type: "unsupported", reason });
    return;
  }
  player = new Player(video, {
    mime: preset.mime,
    fps: preset.fps,
    listeners: {
      shown: ({ segment: { header }, frame, at }) => {
        const { shot, chunk, take, epoch, sequence } = header;
        dispatch({ type: "presented", onScreen: { shot, chunk, take, epoch, sequence }, live: player?.isLive ?? true, now: at });
        if (frame <= 1) rememberThumbnail(shot, take);
      },
      live: (live) => dispatch({ type: "lookBack", on: !live }),
      starved: (on) => dispatch({ type: "starved", on }),
      failed: (reason) => dispatch({ type: "unsupported", reason }),
    },
  });
}

/** @param {import("./protocol.js").StatusState} status */
function follow(status) {
  if (player === null) return;
  player.isRolling = status === "live";
  player.setPaused(status === "paused");
}

/** A card whose picture did not come with the event gets the one on screen. @param {number} shot @param {number} take */
function rememberThumbnail(shot, take) {
  const card = cardOf(state, shot);
  if (player === null || card === undefined || card.thumbnail || card.take !== take) return;
  const small = document.createElement("canvas");
  small.width = 320;
  small.height = Math.round((320 * video.videoHeight) / Math.max(1, video.videoWidth));
  small.getContext("2d")?.drawImage(video, 0, 0, small.width, small.height);
  dispatch({ type: "thumbnail", shot, take, thumbnail: small.toDataURL("image/jpeg", 0.8) });
}

// --------------------------------------------------------------------------------------------------------------------
// Commands

/**
 * @param {import("./protocol.js").CommandKind} kind
 * @param {{text?: string, [field: string]: unknown}} [fields]
 * @param {number} [now] when the key was pressed
 * @param {string} [words] what it is about, where it has no text of its own
 */
function command(kind, fields = {}, now = performance.now(), words = fields.text ?? "") {
  lastCommand += 1;
  const id = `${state.seq}-${lastCommand}-${Math.random().toString(36).slice(2, 8)}`;
  if (!client.send({ kind, id, ...fields })) {
    tell("Not sent: there is no connection.");
    return false;
  }
  dispatch({ type: "sent", id, command: kind, text: words, now });
  return true;
}

const isRunning = () => runs(state);

/** @param {"steer" | "cut"} wish @param {number} now */
function direct(wish, now) {
  const text = prompt.value.trim();
  if (!text || state.role !== "director") return;
  player?.goLive();
  const sent = isRunning() ? command(wish, { text }, now) : command("start", { text, ...storyFields() }, now);
  if (!sent) return;
  pastPrompts.add(text);
  prompt.value = "";
}

function storyFields() {
  const seed = Number.parseInt(/** @type {HTMLInputElement} */ (byId("seed")).value, 10);
  const global_caption = /** @type {HTMLInputElement} */ (byId("global")).value.trim();
  return { global_caption, seed: Number.isFinite(seed) ? Math.max(0, seed) : 0 };
}

function cancelNewest() {
  const open = newestOpen(state);
  return open !== undefined && command("cancel", { target: open.id });
}

const togglePause = () => isRunning() && command(state.status.state === "paused" ? "resume" : "pause");

/** @param {"pin" | "remove"} action @param {RememberedFrame} frame */
const changeMemory = (action, { shot, frame }) => command("memory", { action, frame: { shot, frame } });

// --------------------------------------------------------------------------------------------------------------------
// Prompt line

/** What was typed before, newest last; the arrow keys walk through it. */
const pastPrompts = {
  /** @type {string[]} */
  all: JSON.parse(localStorage.getItem(HISTORY_KEY) ?? "[]"),
  at: -1,
  draft: "",

  /** @param {string} text */
  add(text) {
    this.all = [...this.all.filter((one) => one !== text), text].slice(-HISTORY_LENGTH);
    this.at = -1;
    localStorage.setItem(HISTORY_KEY, JSON.stringify(this.all));
  },

  /** @param {1 | -1} step back is 1 */
  walk(step) {
    if (this.at === -1) this.draft = prompt.value;
    this.at = Math.max(-1, Math.min(this.all.length - 1, this.at + step));
    prompt.value = this.at === -1 ? this.draft : this.all[this.all.length - 1 - this.at];
    prompt.setSelectionRange(prompt.value.length, prompt.value.length);
  },
};

prompt.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter") direct(event.shiftKey ? "cut" : "steer", event.timeStamp);
  else if (event.key === "ArrowUp") pastPrompts.walk(1);
  else if (event.key === "ArrowDown") pastPrompts.walk(-1);
  else if (event.key === "Escape" && prompt.value) prompt.value = "";
  else if (event.key === "Escape" && !cancelNewest()) prompt.blur();
  else return;
  event.preventDefault();
});
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  direct("steer", event.timeStamp);
});
buttons.cut.addEventListener("click", (event) => direct("cut", event.timeStamp));

/** @param {string} text */
function takeSuggestion(text) {
  prompt.value = text;
  prompt.focus();
}

/** How an instruction begins that makes no sense before the first shot. */
const GOES_ON = /^(now|then|transition|cut|he|she|it|they|make|suddenly|close-up of (his|her))\b/i;

/** First shots before the story; then what goes on from it, all in turns, so that they do not wear out. */
function suggestions() {
  const running = isRunning();
  const all = (state.preset?.suggestions ?? []).filter((text) => GOES_ON.test(text) === running);
  if (state.role !== "director" || !all.length) return [];
  const first = running ? 2 * (state.shots.length + (state.shots.at(-1)?.steers.length ?? 0)) : 0;
  const count = Math.min(SUGGESTIONS_SHOWN, all.length);
  return Array.from({ length: count }, (_, index) => all[(first + index) % all.length]);
}

// --------------------------------------------------------------------------------------------------------------------
// Pictures, films, fullscreen

/** @param {Blob} content @param {string} name */
function download(content, name) {
  const link = document.createElement("a");
  link.download = name;
  link.href = URL.createObjectURL(content);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function savePicture() {
  if (state.onScreen === null || player === null) return;
  const name = `shot-${state.onScreen.shot + 1}-${Math.round(video.currentTime * (state.preset?.fps ?? 16))}.png`;
  player.picture().toBlob((blob) => blob && download(blob, name), "image/png");
}

/** The story as it is kept, without what was undone; who only watches, or is cut off, gets what this page received. */
async function saveFilm() {
  if (!film || !state.shots.length) return;
  const kept = state.role === "director" ? await exported(state.story, "mp4", []).catch(() => null) : null;
  download(kept ?? film.blob(), "story.mp4");
}

function toggleFullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else stage.requestFullscreen?.().catch(() => {});
}

takePictures({
  size: () => (state.role === "director" ? state.preset : null),
  add: (picture, caption) => command("memory", { action: "add", picture, caption }),
  play: (file) => panels.play(file),
  tell,
});

// --------------------------------------------------------------------------------------------------------------------
// Logging in

const loginDialog = /** @type {HTMLDialogElement} */ (byId("login-dialog"));
const tokenField = /** @type {HTMLInputElement} */ (byId("token"));

byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const headers = { "content-type": "application/json" };
  const body = JSON.stringify({ token: tokenField.value.trim() });
  const answer = await fetch("/api/login", { method: "POST", headers, body }).catch(() => null);
  const words = answer?.ok ? "" : answer?.status === 429 ? "Too many attempts: wait a minute." : "That token does not fit.";
  byId("login-error").textContent = answer === null ? "The server does not answer." : words;
  if (!answer?.ok) return;
  tokenField.value = "";
  loginDialog.close();
  client.connect();
});

// --------------------------------------------------------------------------------------------------------------------
// Looking back

/** Here if this page still has the pictures, else as the server keeps them. @param {ShotCard} card */
function lookBack(card) {
  if (player?.lookBack(card.shot, card.take, card.start)) return;
  const take = panels.take(card.node);
  if (take && state.role === "director") panels.look([take]);
  else tell(`Shot ${card.shot + 1} is no longer kept on this page.`);
}

/** @param {1 | -1} step */
function lookAtNeighbour(step) {
  const at = state.shots.findIndex(({ shot }) => shot === state.onScreen?.shot);
  const card = state.shots[at + step];
  if (card) lookBack(card);
}

// --------------------------------------------------------------------------------------------------------------------
// What is kept: library, takes, exports

const panels = new Panels({
  state: () => state,
  command: (kind, fields, words) => command(kind, fields, performance.now(), words),
  tell,
  download,
  goLive: () => player?.goLive(),
});

// --------------------------------------------------------------------------------------------------------------------
// Keys and buttons

/** @type {[string, string, string, () => unknown][]} key, name, what it does, act */
const SHORTCUTS = [
  ["/", "/", "To the prompt", () => prompt.focus()],
  [" ", "Space", "Pause, resume", togglePause],
  ["e", "E", "Let the shot run longer", () => command("extend")],
  ["ArrowLeft", "←", "Look back at the shot before", () => lookAtNeighbour(-1)],
  ["ArrowRight", "→", "The shot after", () => lookAtNeighbour(1)],
  ["l", "L", "Back to live", () => player?.goLive()],
  ["p", "P", "This frame as PNG", savePicture],
  ["d", "D", "The story so far as mp4", () => buttons.film.click()],
  ["f", "F", "Fullscreen", toggleFullscreen],
  ["a", "A", "Add a picture to remember", () => buttons.add.click()],
  ...panels.shortcuts,
  ["x", "X", "End the story", () => buttons.stop.click()],
  ["?", "?", "This list", () => helpDialog.showModal()],
];
/** Keys of the prompt line, for the list. */
const PROMPT_KEYS = [
  ["Enter", "Steer the running shot"],
  ["Shift + Enter", "Cut to the next shot"],
  ["↑ ↓", "What you typed before"],
  ["Esc", "Clear the line, then cancel what is pending, then leave the line for the keys below"],
];

const helpDialog = /** @type {HTMLDialogElement} */ (byId("help-dialog"));
byId("shortcuts").append(
  ...[...PROMPT_KEYS, ...SHORTCUTS.map(([, name, words]) => [name, words])].flatMap(([name, words]) => [
    views.element("dt", {}, views.element("kbd", { text: name })),
    views.element("dd", { text: words }),
  ]),
);

addEventListener("keydown", (event) => {
  const at = /** @type {HTMLElement} */ (event.target);
  if (event.altKey || document.querySelector("dialog[open]")) return;
  if (event.ctrlKey || event.metaKey) return undoByKey(event, at);
  if (at.closest("input:not([type=checkbox]), textarea, [contenteditable]")) return;
  // Space and Enter on a button press the button.
  if (event.key === " " && at.closest("button, summary, a, input")) return;
  const shortcut = SHORTCUTS.find(([key]) => key === event.key || key === event.key.toLowerCase());
  if (shortcut === undefined) return;
  event.preventDefault();
  if (event.repeat && !event.key.startsWith("Arrow")) return; // one press, one direction
  shortcut[3]();
});

/** Ctrl + Z takes back a direction, unless there is text of one's own to take back. @param {KeyboardEvent} event @param {HTMLElement} at */
function undoByKey(event, at) {
  const field = at.closest("input:not([type=checkbox])");
  if (event.key.toLowerCase() !== "z" || event.shiftKey || (field && (field !== prompt || prompt.value))) return;
  event.preventDefault();
  if (!event.repeat) panels.undo();
}

const stopDialog = /** @type {HTMLDialogElement} */ (byId("stop-dialog"));
stopDialog.addEventListener("close", () => stopDialog.returnValue === "stop" && command("stop"));
buttons.stop.addEventListener("click", () => {
  if (isQueued(state)) command("stop"); // nothing is lost by it, so nothing is asked
  if (!isRunning()) return;
  stopDialog.returnValue = "";
  stopDialog.showModal();
});
buttons.pause.addEventListener("click", togglePause);
buttons.extend.addEventListener("click", () => command("extend"));
buttons.help.addEventListener("click", () => helpDialog.showModal());
buttons.live.addEventListener("click", () => player?.goLive());
buttons.png.addEventListener("click", savePicture);
buttons.film.addEventListener("click", saveFilm);
buttons.full.addEventListener("click", toggleFullscreen);
buttons["cover-action"].addEventListener("click", () => {
  if (state.connection.phase === "waiting") client.retryNow();
  else if (isQueued(state) && !state.refused && !state.unsupported) command("stop");
  else if (state.refused?.code === "unauthorized") loginDialog.showModal();
  else location.reload();
});

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible") return;
  client.retryNow();
  player?.goLive();
});
addEventListener("online", () => client.retryNow());
addEventListener("pointerdown", () => video.paused && player?.isLive && player.setPaused(state.status.state === "paused"));

// --------------------------------------------------------------------------------------------------------------------
// Drawing

/** @param {typeof state} before */
function announceChanges(before) {
  const newest = state.receipts.at(-1);
  if (newest && newest !== before.receipts.at(-1)) announce(views.receiptWords(newest).join(""));
  const [was, is] = [situation(before), situation(state)];
  if (was.mood !== is.mood) announce([is.badge, is.title, is.help].filter(Boolean).join(". "));
}

function draw() {
  drawn = 0;
  const director = state.role === "director";
  const now = situation(state);
  drawBadge(now);
  drawCover(now);
  drawControls(now, director);
  views.drawTimeline(byId("cards"), state, state.preset?.fps ?? 16, lookBack);
  byId("cards-empty").hidden = state.shots.length > 0;
  views.drawMemory(byId("memory"), state.memory, director, changeMemory);
  const nothing = withoutMemory(state);
  byId("memory-empty").hidden = !nothing;
  views.setText(byId("memory-empty"), nothing);
  views.drawPending(byId("pending"), state.instructions.filter(({ id }) => !id.startsWith(PLAYED)), isQueued(state), (id) => command("cancel", { target: id }));
  views.drawReceipts(byId("receipts"), state.receipts, performance.now());
  views.drawSuggestions(byId("suggestions"), suggestions(), takeSuggestion);
  panels.draw(state);
  drawFacts();
}

/** @param {ReturnType<typeof situation>} now */
function drawBadge({ mood, badge }) {
  if (byId("badge").dataset.mood !== mood) byId("badge").dataset.mood = mood;
  views.setText(byId("badge-text"), badge);
  const title = mood === "live" ? "● shotstream" : `${badge} · shotstream`;
  if (document.title !== title) document.title = title;
}

/** @param {ReturnType<typeof situation>} now */
function drawCover({ mood, title, help }) {
  const cover = byId("cover");
  cover.hidden = !title;
  if (cover.dataset.mood !== mood) cover.dataset.mood = mood;
  cover.classList.toggle("thin", state.onScreen !== null);
  views.setText(byId("cover-title"), title);
  views.setText(byId("cover-help"), help);
  byId("remark").hidden = Boolean(title) || !help;
  views.setText(byId("remark-text"), title ? "" : help);
  const action = buttons["cover-action"];
  const words = actionWords(mood);
  action.hidden = !words;
  action.classList.toggle("quiet", words === LEAVE);
  views.setText(action, words);
}

/** What the button on the cover does. @param {import("./state.js").Mood} mood */
function actionWords(mood) {
  if (mood === "bad") return state.refused?.code === "unauthorized" ? "Log in" : "Reload";
  if (state.connection.phase === "waiting") return "Try now";
  return state.connection.phase === "open" && isQueued(state) && state.role === "director" ? LEAVE : "";
}

/** @param {ReturnType<typeof situation>} now @param {boolean} director */
function drawControls({ mood }, director) {
  const open = state.connection.phase === "open" && !state.refused && !state.unsupported;
  const running = isRunning();
  const ready = open && isReady(state);
  byId("direct").hidden = !director;
  buttons.add.hidden = !director;
  if (prompt.placeholder !== promptHint()) prompt.placeholder = promptHint();
  views.setText(buttons.steer, running ? "Steer" : "Start");
  buttons.steer.disabled = !ready;
  buttons.cut.hidden = !running;
  buttons.cut.disabled = !ready;
  for (const name of ["pause", "extend", "stop"]) {
    buttons[name].hidden = !director;
    buttons[name].disabled = !(open && (running || (name === "stop" && isQueued(state))));
  }
  const label = /** @type {HTMLElement} */ (buttons.pause.querySelector(".label"));
  views.setText(label, state.status.state === "paused" ? "Resume" : "Pause");
  byId("story-box").hidden = running;
  buttons.live.hidden = mood !== "back";
  buttons.png.disabled = state.onScreen === null;
  buttons.film.disabled = state.shots.length === 0;
  views.setText(byId("about"), aboutLine(director));
  drawKeys(running);
}

function promptHint() {
  if (!isRunning()) return state.preset?.suggestions[0] ?? "What do we see first?";
  return state.status.state === "holding" ? "The shot has ended: steer it on, or cut to the next one" : "Now make him look surprised";
}

/** @param {boolean} director */
function aboutLine(director) {
  if (state.preset === null) return "";
  const viewers = state.metrics?.viewers ?? 1;
  const words = [state.preset.name, `${state.preset.width} × ${state.preset.height}`];
  if (viewers > 1) words.push(`${viewers} viewers`);
  if (!director) words.push("you are watching");
  return words.join(" · ");
}

/** @param {boolean} running */
function drawKeys(running) {
  const keys = byId("keys");
  if (keys.dataset.running === String(running)) return;
  keys.dataset.running = String(running);
  const key = (/** @type {string} */ text) => views.element("kbd", { text });
  keys.replaceChildren(...(running
    ? [key("Enter"), " steers the running shot from its next chunk on, ", key("Shift + Enter"), " cuts to a new one"]
    : [key("Enter"), " begins the story"]));
}

function drawFacts() {
  views.setText(byId("rate"), state.framesPerSecond ? state.framesPerSecond.toFixed(1) : "–");
  views.setText(byId("latency"), state.latencyMs === null ? "–" : `${(state.latencyMs / 1000).toFixed(2)} s`);
  views.setText(byId("caption"), state.caption || "–");
  const { leftOut } = state;
  byId("left-out").hidden = !leftOut.length;
  views.setText(byId("left-out"), leftOut.length ? `Too long, left out: ${leftOut.join("; ")}` : "");
}

setInterval(() => {
  client.beat();
  player?.tick();
  const framesPerSecond = player?.framesPerSecond ?? 0;
  if (framesPerSecond !== state.framesPerSecond) dispatch({ type: "rate", framesPerSecond });
  views.drawReceipts(byId("receipts"), state.receipts, performance.now());
}, TICK_MS);

draw();
client.connect();
prompt.focus({ preventScroll: true });
