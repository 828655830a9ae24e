// @ts-check
/**
 * What the page does with a story that is kept: the library, the tree of takes, branching, comparing, taking along, and
 * story files that are played. Wires the panels to each other; the page gives them the state and takes their commands.
 *
 * @typedef {import("./state.js").State} State
 * @typedef {import("./protocol.js").Take} Take
 *
 * @typedef {Object} Page
 * @property {() => State} state
 * @property {(kind: import("./protocol.js").CommandKind, fields?: {text?: string, [field: string]: unknown}, words?: string) => boolean} command
 * @property {(words: string) => void} tell
 * @property {(content: Blob, name: string) => void} download
 * @property {() => void} goLive
 */

import { BranchDialog } from "./branch.js";
import { Refused, interruptPlay, playStory } from "./api.js";
import { Screening } from "./compare.js";
import { ExportDialog } from "./exports.js";
import { Library, freeName, giveTitle, keepTitle } from "./library.js";
import { cardOf, isRunning } from "./state.js";
import { drawTakes, pressedInTakes } from "./takes.js";
import { nameOf, newestInstruction } from "./tree.js";
import { setText } from "./views.js";

/** As in security.py. */
export const MAX_STORY_FILE = 8 * 1024 * 1024;

/** @template {HTMLElement} T @param {string} id @returns {T} */
const byId = (id) => /** @type {T} */ (document.getElementById(id));

export class Panels {
  /** @param {Page} page */
  constructor(page) {
    this.page = page;
    /** @type {number[]} Nodes, in the order in which they were ticked. */
    this.ticked = [];
    this.showsHidden = false;
    this.title = "";
    this.titleOf = "";
    /** @type {unknown} What the tree was drawn from. */
    this.drawn = null;
    this.library = new Library({ current: () => page.state().story, changed: ({ title }) => this.setTitle(title) });
    this.branching = new BranchDialog((node, chunk, text) => this.go("branch", { node, chunk, text }));
    this.screening = new Screening({ makeLive: (take) => this.makeLive(take) });
    this.exporting = new ExportDialog({ download: page.download, untick: (nodes) => this.tick(nodes) });
    this.acts = {
      look: (/** @type {Take} */ take) => this.look([take]),
      retake: (/** @type {Take} */ take) => this.retake(take),
      branch: (/** @type {Take} */ take) => this.branch(take, take.made_chunks),
      makeLive: (/** @type {Take} */ take) => this.makeLive(take),
      hide: (/** @type {Take} */ { node }, /** @type {boolean} */ hidden) => this.page.command("hide", { node, hidden }),
      tick: (/** @type {number} */ node, /** @type {boolean} */ on) => this.tick([...this.ticked.filter((one) => one !== node), ...(on ? [node] : [])]),
    };
    this.listen();
  }

  listen() {
    /** @type {[string, () => unknown][]} */
    const buttons = [
      ["library", () => this.openLibrary()], ["undo", () => this.undo()], ["retake", () => this.retakeShown()],
      ["takes-toggle", () => this.toggleTakes()], ["export", () => this.export()], ["compare", () => this.compare()],
      ["export-cut", () => this.export()], ["hidden-toggle", () => this.toggleHidden()], ["branch-here", () => this.branchHere()],
      ["play-file", () => byId("story-file").click()], ["performance-stop", () => this.interrupt()],
    ];
    for (const [id, act] of buttons) byId(id).addEventListener("click", act);
    byId("takes").addEventListener("keydown", (event) => {
      if (!pressedInTakes(byId("takes"), event)) return;
      event.preventDefault();
      event.stopPropagation();
    });
    const file = /** @type {HTMLInputElement} */ (byId("story-file"));
    file.addEventListener("change", () => {
      if (file.files?.[0]) this.play(file.files[0]);
      file.value = "";
    });
    // Another story's address, typed or clicked: the page begins anew with it.
    addEventListener("hashchange", () => location.reload());
  }

  /** @type {[string, string, string, () => unknown][]} as the page's own */
  get shortcuts() {
    return [
      ["o", "O", "Stories: open, name, copy, delete", () => this.openLibrary()],
      ["t", "T", "Takes and branches", () => this.toggleTakes()],
      ["r", "R", "Make the shot again", () => this.retakeShown()],
      ["b", "B", "Branch: another way from what is shown", () => this.branchHere()],
      ["u", "U, Ctrl + Z", "Undo the newest cut, steer or retake", () => this.undo()],
      ["c", "C", "Compare the two ticked takes", () => this.compare()],
      ["s", "S", "Take the story along: film, story file, timeline", () => this.export()],
    ];
  }

  // ------------------------------------------------------------------------------------------------------------ acts

  /** @param {Take} take */
  named(take) {
    return { take, name: nameOf(take, this.page.state().takes) };
  }

  get isDirector() {
    return this.page.state().role === "director";
  }

  /** @param {number | null | undefined} node */
  take(node) {
    return this.page.state().takes.find((take) => take.node === node);
  }

  /** Go elsewhere in the tree, back at the live picture. @param {"branch" | "retake" | "undo"} kind @param {{text?: string, [field: string]: unknown}} fields @param {string} [words] */
  go(kind, fields, words) {
    this.page.goLive();
    return this.page.command(kind, fields, words);
  }

  openLibrary() {
    return this.isDirector && this.library.open();
  }

  undo() {
    const words = newestInstruction(this.page.state());
    if (this.isDirector && words) this.go("undo", {}, words);
  }

  /** @param {Take} take */
  retake(take) {
    this.go("retake", { node: take.node }, take.text || this.named(take).name);
  }

  /** The shot that is looked at, else the running one. */
  shownTake() {
    const { onScreen, lookingBack, head } = this.page.state();
    const card = lookingBack && onScreen ? cardOf(this.page.state(), onScreen.shot) : undefined;
    return this.take(card?.node ?? head);
  }

  retakeShown() {
    const take = this.shownTake();
    if (take && this.isDirector) this.retake(take);
  }

  /** @param {Take} take */
  makeLive(take) {
    this.go("branch", { node: take.node, text: "" }, `on from ${this.named(take).name.toLowerCase()}`);
  }

  /** @param {Take} take @param {number} chunk */
  branch(take, chunk) {
    const { story, preset } = this.page.state();
    if (preset) this.branching.open(story, take, this.named(take).name, chunk, preset);
  }

  /** From the picture that is shown: behind the chunk that it belongs to. */
  branchHere() {
    const { onScreen, lookingBack } = this.page.state();
    const take = this.shownTake();
    if (take && this.isDirector) this.branch(take, lookingBack && onScreen ? onScreen.chunk + 1 : take.made_chunks);
  }

  /** @param {Take[]} takes */
  look(takes) {
    const { story, preset } = this.page.state();
    return this.screening.open(story, takes.map((take) => this.named(take)), preset?.fps ?? 16);
  }

  compare() {
    if (!this.isDirector) return undefined;
    const takes = this.tickedTakes();
    if (takes.length === 2) return this.look(takes);
    this.page.tell("Tick two takes to compare them.");
    if (byId("takes-box").hidden) this.toggleTakes();
    return undefined;
  }

  export() {
    const { story, shots } = this.page.state();
    if (this.isDirector) this.exporting.open(story, this.tickedTakes().map((take) => this.named(take)), shots.length);
  }

  tickedTakes() {
    return this.ticked.flatMap((node) => this.take(node) ?? []);
  }

  /** @param {number[]} nodes */
  tick(nodes) {
    this.ticked = nodes;
    this.drawTree();
  }

  toggleTakes() {
    if (!this.isDirector) return;
    const box = byId("takes-box");
    box.hidden = !box.hidden;
    byId("takes-toggle").setAttribute("aria-expanded", String(!box.hidden));
    this.drawTree();
    if (box.hidden) return;
    box.scrollIntoView({ block: "nearest" });
    /** @type {HTMLElement | null} */ (box.querySelector(".take.live:last-child .look, .take .look"))?.focus({ preventScroll: true });
  }

  toggleHidden() {
    this.showsHidden = !this.showsHidden;
    this.drawTree();
  }

  // ----------------------------------------------------------------------------------------------------- story files

  /** Play a story file: here if nothing was made here yet, else as a story of its own. @param {File} file */
  async play(file) {
    const { story, takes } = this.page.state();
    if (file.size > MAX_STORY_FILE) {
      this.library.say("This story file is larger than 8 MB, and the server takes no larger ones.");
      return;
    }
    const title = file.name.replace(/\.\w+$/, "");
    const isNew = takes.length > 0 || isRunning(this.page.state());
    if (isNew) await this.library.refresh(); // what is kept under a name must stay what it is
    const name = isNew ? freeName(title, new Set([story, ...this.library.cards.map((card) => card.name)])) : story;
    try {
      const plan = await playStory(name, await file.text());
      this.page.tell(`Playing ${plan.title}: ${plan.shots.length} shots, ${Math.round(plan.seconds)} seconds.`);
      this.library.dialog.close();
      if (!isNew) return;
      keepTitle(name, title);
      location.assign(`/#story=${name}`);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (!this.library.dialog.open) await this.library.open();
      this.library.say(error.message);
    }
  }

  async interrupt() {
    await interruptPlay(this.page.state().story).catch((error) => this.page.tell(error.message));
  }

  // --------------------------------------------------------------------------------------------------------- drawing

  /** @param {string} title */
  setTitle(title) {
    this.title = title;
    setText(byId("story-title"), title);
  }

  /** Fetch the title once something is kept. @param {State} state */
  nameStory({ story, shots }) {
    if (!story || !shots.length || this.titleOf === story || !this.isDirector) return;
    this.titleOf = story;
    giveTitle(story).then((card) => card && this.setTitle(card.title));
  }

  /** @param {State} state */
  draw(state) {
    const director = state.role === "director" && state.preset !== null;
    for (const id of ["library", "undo", "retake", "takes-toggle", "export"]) byId(id).hidden = !director;
    for (const id of ["undo", "retake", "export"]) /** @type {HTMLButtonElement} */ (byId(id)).disabled = !state.shots.length;
    byId("branch-here").hidden = !(director && state.lookingBack);
    const count = state.takes.filter(({ hidden }) => !hidden).length;
    setText(byId("takes-count"), count ? String(count) : "");
    if (!this.title) setText(byId("story-title"), state.story);
    this.nameStory(state);
    this.drawPerformance(state);
    this.drawTree();
  }

  /** @param {State} state */
  drawPerformance({ performance, role }) {
    const playing = performance !== null && performance.state === "playing";
    byId("performance").hidden = !playing;
    byId("performance-stop").hidden = role !== "director";
    if (!playing) return;
    const { title, opened, num_shots, following } = performance;
    setText(byId("performance-words"), `Playing “${title}”: shot ${Math.max(1, opened)} of ${num_shots}`);
    setText(byId("performance-next"), following ? `Next: ${following}` : "The last shot");
  }

  drawTree() {
    const { takes, head, preset } = this.page.state();
    const sources = [takes, head, this.ticked, this.showsHidden, byId("takes-box").hidden].map((one) => one);
    if (preset === null || (Array.isArray(this.drawn) && sources.every((one, index) => one === /** @type {unknown[]} */ (this.drawn)[index]))) return;
    this.drawn = sources;
    if (byId("takes-box").hidden) return;
    drawTakes(byId("takes"), { takes, head, preset, ticked: this.ticked, hidden: this.showsHidden }, this.acts);
    byId("takes-empty").hidden = takes.length > 0;
    this.drawBar(takes);
  }

  /** @param {Take[]} takes */
  drawBar(takes) {
    const hidden = takes.filter((take) => take.hidden).length;
    const compare = /** @type {HTMLButtonElement} */ (byId("compare"));
    compare.disabled = this.tickedTakes().length !== 2;
    /** @type {HTMLButtonElement} */ (byId("export-cut")).disabled = !this.ticked.length;
    byId("hidden-toggle").hidden = !hidden;
    setText(byId("hidden-toggle"), this.showsHidden ? "Leave hidden ones out" : `Show ${hidden} hidden`);
    const count = this.ticked.length;
    setText(byId("ticked"), count === 0 ? "Tick two to compare them, or any to export them in that order." : count === 1 ? "1 ticked" : `${count} ticked`);
  }
}
