// @ts-check
/**
 * Links for watching: made, listed, revoked. The server keeps no tokens, so a link's address can be shown only by the page
 * that made it.
 */

import { Refused, watchLinks } from "./api.js";
import { element, patchList } from "./views.js";

const LOOPBACK = ["localhost", "127.0.0.1", "[::1]"];

/** @template {HTMLElement} T @param {string} id @returns {T} */
const byId = (id) => /** @type {T} */ (document.getElementById(id));

export class WatchLinks {
  /** @param {(words: string) => void} say */
  constructor(say) {
    this.say = say;
    this.story = "";
    /** @type {string[]} */
    this.ids = [];
    /** @type {Map<string, string>} Of the links that were made here, by id. */
    this.tokens = new Map();
    byId("link-new").addEventListener("click", () => this.make());
  }

  /** @param {string} story to which addresses lead */
  async open(story) {
    this.story = story;
    this.draw();
    await this.attempt(async () => {
      this.ids = (await watchLinks.list()).map(({ id }) => id);
    });
  }

  /** Do it, or say why not. @param {() => Promise<void>} act */
  async attempt(act) {
    try {
      await act();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.say(error.message);
    }
    this.draw();
  }

  make() {
    return this.attempt(async () => {
      const { id, token } = await watchLinks.create();
      this.tokens.set(id, token);
      this.ids = [...this.ids, id];
      this.draw();
      byId("links").lastElementChild?.querySelector("button")?.focus();
    });
  }

  /** @param {string} id */
  revoke(id) {
    return this.attempt(async () => {
      await watchLinks.revoke(id);
      this.ids = this.ids.filter((one) => one !== id);
      this.say(`Link ${id} is revoked: nobody can watch by it any more.`);
      byId("link-new").focus();
    });
  }

  draw() {
    // Addresses of this machine alone lead nobody here.
    byId("links-box").hidden = LOOPBACK.includes(location.hostname) && !this.ids.length;
    patchList(byId("links"), this.ids, (id) => `${id}/${this.story}`, (id) => this.row(id));
  }

  /** @param {string} id */
  row(id) {
    const token = this.tokens.get(id);
    const revoke = element("button", { class: "small", text: "Revoke", label: `Revoke link ${id}` });
    revoke.type = "button";
    revoke.addEventListener("click", () => this.revoke(id));
    const words = token ? `Link ${id}` : `Link ${id}, made before: its address is not kept`;
    const head = element("div", { class: "link-head" }, element("span", { text: words }), revoke);
    if (!token) return element("li", {}, head);
    const page = `${location.origin}/#story=${this.story}&token=${token}`;
    const film = `${location.protocol}//watch:${token}@${location.host}/stories/${this.story}/live.mp4`;
    return element("li", {}, this.address("In a browser", page), this.address("In a player", film), head);
  }

  /** @param {string} label @param {string} text */
  address(label, text) {
    const code = element("code", { text, label: `${label}: address` });
    code.tabIndex = 0;
    const copy = element("button", { class: "tool", text: "Copy", label: `Copy the address, ${label.toLowerCase()}` });
    copy.type = "button";
    copy.addEventListener("click", () => copyAddress(code, this.say));
    return element("div", { class: "address" }, element("span", { text: label }), code, copy);
  }
}

/** @param {HTMLElement} shown selected where there is no clipboard: a page without TLS @param {(words: string) => void} say */
export async function copyAddress(shown, say) {
  try {
    await navigator.clipboard.writeText(shown.textContent ?? "");
    say("The address is on the clipboard.");
  } catch {
    getSelection()?.selectAllChildren(shown);
    say("Press Ctrl+C: the address is selected.");
  }
}
