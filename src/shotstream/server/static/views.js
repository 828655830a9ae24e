// @ts-check
/**
 * Draws parts of the page from the state. Text from people is only ever set as text. Lists are patched by key, so that
 * focus and scrolling survive.
 *
 * @typedef {import("./state.js").State} State
 * @typedef {import("./state.js").Instruction} Instruction
 * @typedef {import("./state.js").Receipt} Receipt
 * @typedef {import("./protocol.js").ShotCard} ShotCard
 * @typedef {import("./protocol.js").RememberedFrame} RememberedFrame
 */

import { reasonOf } from "./state.js";

const RECEIPT_MS = 5000;
const RECEIPTS_SHOWN = 3;

/**
 * @template {keyof HTMLElementTagNameMap} Name
 * @param {Name} name
 * @param {{class?: string, text?: string, label?: string, title?: string}} [properties]
 * @param {...(Node | string)} children
 */
export function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  if (properties.class) node.className = properties.class;
  if (properties.text !== undefined) node.textContent = properties.text;
  if (properties.label) node.setAttribute("aria-label", properties.label);
  if (properties.title) node.title = properties.title;
  node.append(...children);
  return node;
}

/** Set a node's text. Setting the same again would lay the page out anew, with every picture. @param {Element} node @param {string} text */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Make a list's children match the items: a child is kept as long as its key and its content stay the same.
 *
 * @template Item
 * @param {HTMLElement} list
 * @param {Item[]} items
 * @param {(item: Item) => string} keyOf     identity and everything that is drawn
 * @param {(item: Item) => HTMLElement} draw
 */
export function patchList(list, items, keyOf, draw) {
  const old = new Map([...list.children].map((child) => [/** @type {HTMLElement} */ (child).dataset.key, child]));
  const nodes = items.map((item) => {
    const key = keyOf(item);
    const node = /** @type {HTMLElement | undefined} */ (old.get(key)) ?? draw(item);
    node.dataset.key = key;
    return node;
  });
  // What stays is not taken out: that would cost it the focus.
  const kept = new Set(nodes);
  for (const child of [...list.children]) if (!kept.has(/** @type {HTMLElement} */ (child))) child.remove();
  nodes.forEach((node, index) => {
    if (list.children[index] !== node) list.insertBefore(node, list.children[index] ?? null);
  });
}

/** @param {string} markup paths of a 24 x 24 drawing; never anything a person wrote */
function drawing(markup) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", markup);
  svg.append(path);
  return svg;
}

const PIN = "M9 4h6l-1 6 3 3H7l3-3zM12 13v7";
const CROSS = "M6 6l12 12M18 6L6 18";

/** @param {string} base64 @param {string} alt */
export function thumbnail(base64, alt) {
  if (!base64) return element("span", { class: "thumb blank" });
  const image = element("img", { class: "thumb" });
  image.src = base64.startsWith("data:") ? base64 : `data:image/jpeg;base64,${base64}`;
  image.alt = alt;
  return image;
}

/**
 * @param {HTMLElement} list
 * @param {State} state
 * @param {number} fps
 * @param {(card: ShotCard) => void} open
 */
export function drawTimeline(list, state, fps, open) {
  const current = state.onScreen?.shot;
  const keyOf = (/** @type {ShotCard} */ card) => `${card.start}/${card.shot}/${card.take}/${Boolean(card.thumbnail)}`;
  patchList(list, state.shots, keyOf, (card) => drawCard(card, fps, open));
  state.shots.forEach((card, index) => {
    const item = /** @type {HTMLElement} */ (list.children[index]);
    const wasCurrent = item.hasAttribute("aria-current");
    if (card.shot === current) item.setAttribute("aria-current", "true");
    else item.removeAttribute("aria-current");
    if (card.shot === current && !wasCurrent) scrollTo(list, item);
    updateProgress(item, card);
  });
}

/** Bring a card into view sideways; the page itself stays where it is. @param {HTMLElement} list @param {HTMLElement} item */
function scrollTo(list, item) {
  const left = item.offsetLeft - list.offsetLeft;
  const hidden = left < list.scrollLeft || left + item.offsetWidth > list.scrollLeft + list.clientWidth;
  if (hidden) list.scrollTo({ left: left - 40, behavior: "smooth" });
}

/** @param {ShotCard} card @param {number} fps @param {(card: ShotCard) => void} open */
function drawCard(card, fps, open) {
  const remembers = new Set(card.context.map(({ shot, frame }) => `${shot}/${frame}`)).size;
  const button = element(
    "button", { title: card.caption },
    thumbnail(card.thumbnail, ""),
    element("span", { class: "number" },
      element("span", {}, element("span", { class: "hidden", text: "Look back at " }), `Shot ${card.shot + 1}`),
      element("span", { text: remembers ? `remembers ${remembers}` : timecode(card.start, fps) })),
    element("span", { class: "text", text: card.text }),
    element("span", { class: "hidden steers" }),
    element("span", { class: "progress" }, element("span", { class: "made" })),
  );
  button.lastElementChild?.setAttribute("aria-hidden", "true");
  button.type = "button";
  button.addEventListener("click", () => open(card));
  return element("li", { class: "card" }, button);
}

/** @param {HTMLElement} item @param {ShotCard} card */
function updateProgress(item, card) {
  const drawn = `${card.made_chunks}/${card.num_chunks}/${card.steers.map(({ id }) => id)}`;
  if (item.dataset.progress === drawn) return;
  item.dataset.progress = drawn;
  const made = /** @type {HTMLElement} */ (item.querySelector(".made"));
  made.style.width = `${Math.min(100, (100 * card.made_chunks) / Math.max(1, card.num_chunks))}%`;
  // The marks are for the eye; the same words are read with the card.
  setText(/** @type {Element} */ (item.querySelector(".steers")), card.steers.map(({ text }) => `, steer: ${text}`).join(""));
  const bar = /** @type {HTMLElement} */ (item.querySelector(".progress"));
  bar.querySelectorAll(".steer-mark").forEach((mark) => mark.remove());
  for (const { chunk, text } of card.steers) {
    const mark = element("span", { class: "steer-mark", title: text });
    mark.style.left = `${Math.min(98, (100 * chunk) / Math.max(1, card.num_chunks, card.made_chunks))}%`;
    bar.append(mark);
  }
}

/** @param {number} start story frame @param {number} fps */
function timecode(start, fps) {
  const seconds = Math.floor(start / fps);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

/**
 * @param {HTMLElement} list
 * @param {RememberedFrame[]} frames
 * @param {boolean} editable
 * @param {(action: "pin" | "remove", frame: RememberedFrame) => void} act
 */
export function drawMemory(list, frames, editable, act) {
  const keyOf = (/** @type {RememberedFrame} */ frame) =>
    `${frame.shot}/${frame.frame}/${frame.reason}/${editable}/${frame.thumbnail.length}`;
  const seen = new Map(frames.map((frame) => [`${frame.shot}/${frame.frame}`, frame]));
  patchList(list, [...seen.values()], keyOf, (frame) => drawFrame(frame, editable, act));
}

/** @param {RememberedFrame} frame @param {boolean} editable
 * @param {(action: "pin" | "remove", frame: RememberedFrame) => void} act */
function drawFrame(frame, editable, act) {
  const why = reasonOf(frame);
  const kept = frame.reason === "pinned" || frame.reason === "picture";
  const item = element("li", { class: kept ? "frame pinned" : "frame", title: frame.caption },
    thumbnail(frame.thumbnail, `${why}: ${frame.caption}`), element("p", { text: why }));
  if (!editable) return item;
  const acts = element("div", { class: "acts" });
  if (!kept) acts.append(iconButton(PIN, `Pin the frame of ${why}`, "Keep in mind at every cut", () => act("pin", frame)));
  acts.append(iconButton(CROSS, `Remove the frame of ${why}`, "Do not remember this", () => act("remove", frame)));
  item.append(acts);
  return item;
}

/** @param {string} path @param {string} label @param {string} title @param {() => void} act */
function iconButton(path, label, title, act) {
  const button = element("button", { label, title }, drawing(path));
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

/** @param {HTMLElement} list @param {Instruction[]} instructions @param {boolean} queued @param {(id: string) => void} cancel */
export function drawPending(list, instructions, queued, cancel) {
  const shown = instructions.filter(({ command }) => command in VERB);
  const keyOf = (/** @type {Instruction} */ one) => `${one.id}/${one.stage}/${queued}`;
  const accepted = queued ? "waiting in the queue" : "waiting for the next chunk";
  patchList(list, shown, keyOf, (one) => {
    const words = one.stage === "coming" ? "on its way" : one.stage === "sent" && !queued ? "sending" : accepted;
    const item = element("li", { title: words }, element("span", { text: `${VERB[one.command]}: ${one.text}` }));
    if (one.stage === "coming") item.append(element("span", { text: "…" }));
    else item.append(cancelButton(one, cancel));
    return item;
  });
}

/** @param {Instruction} one @param {(id: string) => void} cancel */
function cancelButton(one, cancel) {
  const button = element("button", { text: "×", label: `Cancel: ${one.text}`, title: "Cancel (Esc)" });
  button.type = "button";
  button.addEventListener("click", () => cancel(one.id));
  return button;
}

/** @type {Record<string, string>} */
const VERB = { start: "Start", cut: "Cut", steer: "Steer", branch: "Branch", retake: "Retake", undo: "Undo", hide: "Hide" };

/** @param {HTMLElement} list @param {Receipt[]} receipts @param {number} now */
export function drawReceipts(list, receipts, now) {
  const fresh = receipts.filter(({ at, outcome }) => now - at < RECEIPT_MS * (outcome === "failed" ? 2 : 1));
  patchList(list, fresh.slice(-RECEIPTS_SHOWN), ({ id, outcome }) => `${id}/${outcome}`, (receipt) => {
    const [verb, rest] = receiptWords(receipt);
    const words = element("p", {}, element("b", { text: verb }), element("span", { text: rest }));
    if (receipt.latencyMs !== null) words.append(element("small", { text: ` · ${(receipt.latencyMs / 1000).toFixed(2)} s` }));
    if (receipt.leftOut.length) words.append(element("small", { text: ` · too long, left out: ${receipt.leftOut.join("; ")}` }));
    const item = element("li", {}, words);
    item.dataset.outcome = receipt.outcome;
    return item;
  });
}

/** @param {Receipt} receipt @returns {[string, string]} */
export function receiptWords({ command, outcome, text, reason }) {
  const verb = VERB[command] ?? command;
  const what = text ? ` ${text}` : "";
  if (outcome === "applied") return [verb || "Done", what + (reason ? ` (${reason})` : "")];
  if (outcome === "superseded") return [`${verb} dropped`, `${what}${reason ? `: ${reason}` : ""}`];
  return [verb ? `${verb} failed` : "Not done", `${what}: ${reason || "no reason was given"}`];
}

/** @param {HTMLElement} list @param {string[]} suggestions @param {(text: string) => void} take */
export function drawSuggestions(list, suggestions, take) {
  patchList(list, suggestions, (text) => text, (text) => {
    const button = element("button", { text });
    button.type = "button";
    button.addEventListener("click", () => take(text));
    return element("li", {}, button);
  });
}
