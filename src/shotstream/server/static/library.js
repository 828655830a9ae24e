// @ts-check
/**
 * The library of stories: what there is, how long, how large; open, name, copy, delete, begin another.
 *
 * @typedef {import("./api.js").StoryCard} StoryCard
 */

import { Refused, stories } from "./api.js";
import { element, setText, thumbnail } from "./views.js";

const NAME_LENGTH = 48;
const FILTER_FROM = 8;
const TITLE_KEY = "shotstream.title.";

/** @template {HTMLElement} T @param {string} id @returns {T} */
const byId = (id) => /** @type {T} */ (document.getElementById(id));

export class Library {
  /** @param {{current: () => string, changed: (card: StoryCard) => void}} page changed: the story that is open got another title */
  constructor({ current, changed }) {
    this.current = current;
    this.changed = changed;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("library-dialog"));
    this.list = byId("stories");
    this.filter = /** @type {HTMLInputElement} */ (byId("stories-filter"));
    /** @type {StoryCard[]} */
    this.cards = [];
    this.filter.addEventListener("input", () => this.draw());
    byId("new-story").addEventListener("submit", (event) => {
      event.preventDefault();
      this.begin(/** @type {HTMLInputElement} */ (byId("new-title")).value.trim());
    });
  }

  async open() {
    this.say("");
    this.dialog.showModal();
    await this.refresh();
    this.focusOn(this.current());
  }

  async refresh() {
    await this.try(async () => {
      this.cards = await stories.list();
    });
    this.draw();
  }

  /** Do it, or say why not. @param {() => Promise<unknown>} act */
  async try(act) {
    try {
      await act();
      this.say("");
      return true;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.say(error.message);
      return false;
    }
  }

  /** @param {string} words */
  say(words) {
    setText(byId("library-error"), words);
  }

  draw() {
    const wanted = this.filter.value.trim().toLowerCase();
    const shown = this.cards.filter(({ title, name }) => `${title} ${name}`.toLowerCase().includes(wanted));
    this.filter.hidden = this.cards.length < FILTER_FROM && !wanted;
    this.list.replaceChildren(...shown.map((card) => this.row(card)));
    byId("stories-empty").hidden = this.cards.length > 0;
    const bytes = this.cards.reduce((sum, card) => sum + card.bytes, 0);
    const count = this.cards.length === 1 ? "1 story" : `${this.cards.length} stories`;
    setText(byId("library-sum"), this.cards.length ? `${count} · ${sizeOf(bytes)}` : "");
  }

  /** @param {StoryCard} card */
  row(card) {
    const here = card.name === this.current();
    const link = element("a", { class: "open", title: `Open ${location.origin}${card.url}` }, thumbnail(card.thumbnail, ""), element("span", { text: card.title }));
    link.href = card.url;
    if (here) link.setAttribute("aria-current", "page");
    link.addEventListener("click", (event) => {
      if (!here) return;
      event.preventDefault();
      this.dialog.close();
    });
    const facts = element("p", { class: "facts-line", text: factsOf(card) });
    const pill = here ? "open here" : card.live ? "live" : "";
    if (pill) facts.prepend(element("span", { class: "pill", text: pill }), " ");
    const row = element("li", { class: here ? "story-row here" : "story-row" }, link, facts, this.acts(card));
    row.dataset.name = card.name;
    return row;
  }

  /** @param {StoryCard} card */
  acts(card) {
    const acts = element("div", { class: "acts" },
      button("Rename", `Rename ${card.title}`, () => this.rename(card)),
      button("Duplicate", `Duplicate ${card.title}`, () => this.duplicate(card)),
      button("Delete", `Delete ${card.title}`, () => this.confirm(card)));
    return acts;
  }

  /** @param {StoryCard} card */
  rowOf({ name }) {
    return /** @type {HTMLElement | undefined} */ ([...this.list.children].find((row) => /** @type {HTMLElement} */ (row).dataset.name === name));
  }

  /** Put a question in the place of a row's buttons; Escape takes it back. @param {StoryCard} card @param {HTMLElement[]} parts @param {() => Promise<unknown>} act */
  ask(card, parts, act) {
    const form = element("form", { class: "ask" }, ...parts);
    const back = () => {
      const acts = this.acts(card);
      form.replaceWith(acts);
      /** @type {HTMLElement} */ (acts.firstElementChild).focus();
    };
    form.append(button("Keep it", "Keep it as it is", back));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      act();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      back();
    });
    this.rowOf(card)?.querySelector(".acts, .ask")?.replaceWith(form);
    /** @type {HTMLElement | null} */ (form.querySelector("input, button"))?.focus();
  }

  /** @param {StoryCard} card */
  rename(card) {
    const field = element("input", { label: `New name of ${card.title}` });
    field.type = "text";
    field.maxLength = 200;
    field.required = true;
    field.value = card.title;
    this.ask(card, [field, submit("Rename", "small strong")], async () => {
      const title = field.value.trim();
      if (!title || !(await this.try(async () => this.settled(await stories.rename(card.name, title))))) return;
      await this.refresh();
      this.focusOn(card.name);
    });
    field.select();
  }

  /** @param {StoryCard} card */
  settled(card) {
    if (card.name === this.current()) this.changed(card);
  }

  /** @param {StoryCard} card */
  async duplicate(card) {
    /** @type {StoryCard | null} */
    let copy = null;
    await this.try(async () => {
      copy = await stories.duplicate(card.name);
    });
    if (copy === null) return;
    await this.refresh();
    this.focusOn(/** @type {StoryCard} */ (copy).name);
  }

  /** @param {StoryCard} card */
  confirm(card) {
    const takes = card.num_takes === 1 ? "its take" : `all ${card.num_takes} takes`;
    const words = element("p", { text: `Delete “${card.title}” with ${takes}? It cannot be brought back.` });
    this.ask(card, [words, submit("Delete for good", "small strong danger")], async () => {
      if (await this.try(() => stories.remove(card.name))) await this.refresh();
      else this.rowOf(card)?.querySelector(".ask")?.replaceWith(this.acts(card));
      /** @type {HTMLElement | null} */ (this.list.querySelector("a"))?.focus();
    });
  }

  /** @param {string} name */
  focusOn(name) {
    const row = [...this.list.children].find((one) => /** @type {HTMLElement} */ (one).dataset.name === name);
    /** @type {HTMLElement | null | undefined} */ (row?.querySelector("a"))?.focus();
  }

  /** Go to a story that is not there yet; it begins with its first shot. @param {string} title */
  begin(title) {
    const taken = new Set([...this.cards.map(({ name }) => name), this.current()]);
    const name = freeName(title, taken);
    keepTitle(name, title);
    location.assign(`/#story=${name}`);
  }
}

/** To be given to a story as soon as there is something to name. @param {string} name @param {string} title */
export function keepTitle(name, title) {
  if (title && title !== name) sessionStorage.setItem(TITLE_KEY + name, title);
}

/** The title that a new story was given before there was anything to name. @param {string} name @returns {Promise<StoryCard | null>} */
export async function giveTitle(name) {
  const title = sessionStorage.getItem(TITLE_KEY + name);
  const card = title ? await stories.rename(name, title.slice(0, 200)).catch(() => null) : await stories.get(name).catch(() => null);
  if (card !== null) sessionStorage.removeItem(TITLE_KEY + name);
  return card;
}

/** Letters, digits and - for an address. @param {string} title @param {Set<string>} taken */
export function freeName(title, taken) {
  const plain = title.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase();
  const base = plain.replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, NAME_LENGTH) || "story";
  for (let count = 1; ; count += 1) {
    const name = count === 1 ? base : `${base}-${count}`;
    if (!taken.has(name)) return name;
  }
}

/** @param {StoryCard} card */
function factsOf({ seconds, bytes, num_takes, changed, viewers }) {
  const words = [lengthOf(seconds), num_takes === 1 ? "1 take" : `${num_takes} takes`, sizeOf(bytes), agoOf(changed)];
  if (viewers > 1) words.push(`${viewers} watch`);
  return words.join(" · ");
}

/** @param {number} seconds */
export function lengthOf(seconds) {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** @param {number} bytes */
export function sizeOf(bytes) {
  const [unit, name] = bytes < 1e6 ? [1e3, "kB"] : bytes < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
  const value = bytes / Number(unit);
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${name}`;
}

/** @param {number} time Unix, seconds */
function agoOf(time) {
  const seconds = Date.now() / 1000 - time;
  if (seconds < 60) return "just now";
  const words = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  if (seconds < 3600) return words.format(-Math.round(seconds / 60), "minute");
  if (seconds < 86_400) return words.format(-Math.round(seconds / 3600), "hour");
  return words.format(-Math.round(seconds / 86_400), "day");
}

/** @param {string} text @param {string} label @param {() => void} act */
function button(text, label, act) {
  const node = element("button", { class: "small", text, label });
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}

/** @param {string} text @param {string} style */
function submit(text, style) {
  const node = element("button", { class: style, text });
  node.type = "submit";
  return node;
}
