// @ts-check
/**
 * Taking a story along: which film (the live path, or ticked takes in any order), in which format, and the addresses by
 * which others watch it live.
 *
 * @typedef {import("./compare.js").Named} Named
 */

import { Refused, exported } from "./api.js";
import { WatchLinks, copyAddress } from "./links.js";
import { element, setText } from "./views.js";

/** @type {[string, string, string][]} */
const FORMATS = [
  ["mp4", "Film", "mp4, the very pictures that were sent"],
  ["png", "Contact sheet", "png, a row per shot"],
  ["yaml", "Story file", "yaml, makes the same frames again"],
  ["otio", "Timeline", "OpenTimelineIO, for an editor"],
  ["vtt", "Captions", "WebVTT"],
  ["zip", "Everything", "zip, and each take as mp4"],
];

/** @template {HTMLElement} T @param {string} id @returns {T} */
const byId = (id) => /** @type {T} */ (document.getElementById(id));

export class ExportDialog {
  /** @param {{download: (content: Blob, name: string) => void, untick: (nodes: number[]) => void}} page untick: another cut list */
  constructor({ download, untick }) {
    this.download = download;
    this.changeList = untick;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("export-dialog"));
    this.story = "";
    /** @type {Named[]} */
    this.cut = [];
    byId("formats").append(...FORMATS.map((format) => this.formatButton(format)));
    for (const choice of this.dialog.querySelectorAll("input[name=cut]")) choice.addEventListener("change", () => this.draw());
    const say = (/** @type {string} */ words) => this.say(words);
    byId("live-copy").addEventListener("click", () => copyAddress(byId("live-address"), say));
    this.links = new WatchLinks(say);
  }

  /** @param {string} story @param {Named[]} ticked in the order in which they were ticked @param {number} numShots of the live path */
  open(story, ticked, numShots) {
    this.story = story;
    this.cut = ticked;
    setText(byId("cut-live-words"), numShots === 1 ? "The live path, 1 shot" : `The live path, ${numShots} shots`);
    this.choice(ticked.length ? "own" : "live");
    this.say("");
    setText(byId("live-address"), `${location.origin}/stories/${story}/live.mp4`);
    this.links.open(story);
    this.draw();
    this.dialog.showModal();
    /** @type {HTMLElement | null} */ (byId("formats").querySelector("button"))?.focus();
  }

  /** @param {"live" | "own"} value */
  choice(value) {
    for (const one of /** @type {NodeListOf<HTMLInputElement>} */ (this.dialog.querySelectorAll("input[name=cut]"))) one.checked = one.value === value;
  }

  get isOwn() {
    return /** @type {HTMLInputElement} */ (byId("cut-own")).checked;
  }

  /** @param {string} words */
  say(words) {
    setText(byId("export-note"), words);
  }

  draw() {
    /** @type {HTMLInputElement} */ (byId("cut-own")).disabled = !this.cut.length;
    if (!this.cut.length) this.choice("live");
    setText(byId("cut-own-words"), this.cut.length ? "The takes that are ticked, in this order" : "My own cut: tick takes first");
    const list = byId("cut-list");
    list.hidden = !this.isOwn;
    list.replaceChildren(...this.cut.map((one, index) => this.row(one, index)));
  }

  /** @param {Named} one @param {number} index */
  row(one, index) {
    const { name, take } = one;
    const item = element("li", {}, element("span", { text: `${name}: ${take.text || take.caption}` }));
    const move = (/** @type {number} */ to) => {
      const cut = this.cut.toSpliced(index, 1);
      this.change(to < 0 ? cut : cut.toSpliced(to, 0, one));
      const rows = byId("cut-list").children;
      /** @type {HTMLElement | null | undefined} */ (rows[Math.max(0, Math.min(rows.length - 1, to))]?.querySelector("button:enabled"))?.focus();
    };
    const up = mark("↑", `Earlier: ${name}`, () => move(index - 1));
    const down = mark("↓", `Later: ${name}`, () => move(index + 1));
    up.disabled = index === 0;
    down.disabled = index === this.cut.length - 1;
    item.append(up, down, mark("×", `Leave out ${name}`, () => move(-1)));
    return item;
  }

  /** @param {Named[]} cut */
  change(cut) {
    this.cut = cut;
    this.changeList(cut.map(({ take }) => take.node));
    this.draw();
  }

  /** @param {[string, string, string]} format */
  formatButton([format, name, words]) {
    const button = element("button", { class: "format" }, element("b", { text: name }), element("span", { text: words }));
    button.type = "button";
    button.dataset.format = format;
    button.addEventListener("click", () => this.take(format, name, button));
    return element("li", {}, button);
  }

  /** @param {string} format @param {string} name @param {HTMLButtonElement} button */
  async take(format, name, button) {
    button.disabled = true;
    this.say(`${name}: being put together …`);
    try {
      const content = await exported(this.story, format, this.isOwn ? this.cut.map(({ take }) => take.node) : []);
      this.download(content, `${this.story}.${format}`);
      this.say(`${name}: saved as ${this.story}.${format}.`);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.say(error.message);
    } finally {
      button.disabled = false;
      button.focus();
    }
  }
}

/** @param {string} text @param {string} label @param {() => void} act */
function mark(text, label, act) {
  const button = element("button", { class: "small square", text, label });
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}
