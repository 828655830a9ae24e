// @ts-check
/**
 * The tree of takes as a nested list: a row per take, a chain of rows per way through the story. Arrow keys walk from
 * row to row; every row's buttons can also be reached by Tab.
 *
 * @typedef {import("./protocol.js").Take} Take
 * @typedef {import("./protocol.js").PresetInfo} PresetInfo
 * @typedef {import("./tree.js").Step} Step
 *
 * @typedef {Object} Acts
 * @property {(take: Take) => void} look
 * @property {(take: Take) => void} retake
 * @property {(take: Take) => void} branch
 * @property {(take: Take) => void} makeLive
 * @property {(take: Take, hidden: boolean) => void} hide
 * @property {(node: number, on: boolean) => void} tick
 *
 * @typedef {Object} Drawing
 * @property {Take[]} takes
 * @property {number | null} head
 * @property {PresetInfo} preset
 * @property {number[]} ticked      in the order in which they were ticked
 * @property {boolean} hidden       whether hidden takes are shown
 */

import { grow, nameOf, secondsOf } from "./tree.js";
import { element, patchList, setText, thumbnail } from "./views.js";

/** @param {HTMLElement} list @param {Drawing} drawing @param {Acts} acts */
export function drawTakes(list, drawing, acts) {
  drawChain(list, grow(drawing.takes, drawing.hidden), drawing, acts);
}

/** @param {HTMLElement} list @param {Step[]} chain @param {Drawing} drawing @param {Acts} acts */
function drawChain(list, chain, drawing, acts) {
  patchList(list, chain, keyOf, ({ take }) => drawStep(take, nameOf(take, drawing.takes), acts));
  chain.forEach(({ take, instead }, index) => {
    const item = /** @type {HTMLElement} */ (list.children[index]);
    update(item, take, drawing);
    drawInstead(item, instead, drawing, acts);
  });
}

/** What a row shows that rarely changes; the rest is updated in place. @param {Step} step */
const keyOf = ({ take }) => `${take.node}/${take.hidden}/${Boolean(take.thumbnail)}`;

/** @param {HTMLElement} item @param {Step[][]} instead @param {Drawing} drawing @param {Acts} acts */
function drawInstead(item, instead, drawing, acts) {
  const others = item.querySelector(":scope > ul");
  if (!instead.length) {
    others?.remove();
    return;
  }
  const list = /** @type {HTMLElement} */ (others ?? element("ul", { class: "instead", label: "Instead of it" }));
  if (!others) item.append(list);
  patchList(list, instead, (chain) => String(chain[0].take.node), () => element("li", {}, element("ol", { class: "chain" })));
  instead.forEach((chain, index) => {
    drawChain(/** @type {HTMLElement} */ (list.children[index].firstElementChild), chain, drawing, acts);
  });
}

/** @param {Take} take @param {string} name @param {Acts} acts */
function drawStep(take, name, acts) {
  const tick = element("input", { label: `Tick ${name}` });
  tick.type = "checkbox";
  tick.addEventListener("change", () => acts.tick(take.node, tick.checked));
  const look = element("button", { class: "look", label: `Look at ${name}`, title: "Play this take" }, thumbnail(take.thumbnail, ""));
  look.type = "button";
  look.addEventListener("click", () => acts.look(take));
  const words = element("div", { class: "words" },
    element("p", { class: "which" }, element("b", { text: name }), element("span", { class: "pill", text: "" }), element("span", { class: "length", text: "" })),
    element("p", { class: "text", text: take.text || take.caption, title: take.caption }));
  const buttons = element("div", { class: "acts" },
    act("Retake", name, "Make it again with other noise (R)", () => acts.retake(take)),
    act("Branch", name, "Another way from a place in it (B)", () => acts.branch(take)),
    act("Make live", name, "The story goes on from its end (M)", () => acts.makeLive(take)),
    act(take.hidden ? "Show again" : "Hide", name, "With all that follow it (H)", () => acts.hide(take, !take.hidden)));
  const row = element("div", { class: "take" }, tick, look, words, buttons);
  row.dataset.node = String(take.node);
  return element("li", {}, row);
}

/** @param {string} text @param {string} name of the take, for who only hears the button @param {string} title @param {() => void} does */
function act(text, name, title, does) {
  const button = element("button", { class: "small", title }, element("span", { text }), element("span", { class: "hidden", text: `: ${name}` }));
  button.type = "button";
  button.addEventListener("click", does);
  return button;
}

/** @param {HTMLElement} item @param {Take} take @param {Drawing} drawing */
function update(item, take, { head, preset, ticked }) {
  const row = /** @type {HTMLElement} */ (item.firstElementChild);
  const isHead = take.node === head;
  row.classList.toggle("live", take.live);
  row.classList.toggle("gone", take.hidden);
  const pill = isHead ? "goes on here" : take.live ? "live" : take.hidden ? "hidden" : "";
  setText(/** @type {Element} */ (row.querySelector(".pill")), pill);
  setText(/** @type {Element} */ (row.querySelector(".length")), `${secondsOf(take.made_chunks, preset).toFixed(1)} s${take.origin === null ? "" : ` · begins as take ${take.take + 1}`}`);
  const tick = /** @type {HTMLInputElement} */ (row.querySelector("input"));
  tick.checked = ticked.includes(take.node);
  const [, , makeLive, hide] = /** @type {HTMLButtonElement[]} */ ([...row.querySelectorAll(".acts button")]);
  setText(/** @type {Element} */ (makeLive.firstElementChild), take.live ? "Go on here" : "Make live");
  makeLive.disabled = isHead;
  hide.disabled = take.live;
}

/** @type {Record<string, number>} */
const KEYS = { r: 0, b: 1, m: 2, h: 3 };

/** Keys on a row. Whether the key was meant for it. @param {HTMLElement} list @param {KeyboardEvent} event */
export function pressedInTakes(list, event) {
  const row = /** @type {HTMLElement} */ (event.target).closest(".take");
  if (row === null || event.ctrlKey || event.metaKey || event.altKey) return false;
  const rows = /** @type {HTMLElement[]} */ ([...list.querySelectorAll(".take")]);
  const at = rows.indexOf(/** @type {HTMLElement} */ (row));
  const steps = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 };
  if (event.key in steps) {
    const next = rows[steps[/** @type {keyof typeof steps} */ (event.key)]];
    /** @type {HTMLElement | null | undefined} */ (next?.querySelector(".look"))?.focus();
    return true;
  }
  if (event.key === "t" || event.key === "T") /** @type {HTMLElement} */ (row.querySelector("input")).click();
  else if (event.key.toLowerCase() in KEYS) /** @type {HTMLElement} */ (row.querySelectorAll(".acts button")[KEYS[event.key.toLowerCase()]]).click();
  else return false;
  return true;
}
