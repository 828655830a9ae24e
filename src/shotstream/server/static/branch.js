// @ts-check
/**
 * Asks where in a take another way begins, and with which words. The place is seen in the take's own film.
 *
 * @typedef {import("./protocol.js").Take} Take
 * @typedef {import("./protocol.js").PresetInfo} PresetInfo
 */

import { takeFilm } from "./api.js";
import { secondsOf } from "./tree.js";
import { setText } from "./views.js";

/** @template {HTMLElement} T @param {string} id @returns {T} */
const byId = (id) => /** @type {T} */ (document.getElementById(id));

export class BranchDialog {
  /** @param {(node: number, chunk: number, text: string) => void} branch */
  constructor(branch) {
    this.dialog = /** @type {HTMLDialogElement} */ (byId("branch-dialog"));
    this.video = /** @type {HTMLVideoElement} */ (byId("branch-video"));
    this.range = /** @type {HTMLInputElement} */ (byId("branch-chunk"));
    this.caption = /** @type {HTMLInputElement} */ (byId("branch-caption"));
    this.url = "";
    /** @type {Take | null} */
    this.take = null;
    /** @type {PresetInfo | null} */
    this.preset = null;
    this.range.addEventListener("input", () => this.moved());
    this.dialog.addEventListener("close", () => this.leave());
    byId("branch-cancel").addEventListener("click", () => this.dialog.close());
    byId("branch-form").addEventListener("submit", () => {
      if (this.take) branch(this.take.node, this.chunk, this.caption.value.trim());
    });
  }

  get chunk() {
    return Number(this.range.value);
  }

  /** @param {string} story @param {Take} take @param {string} name @param {number} chunk how many of its chunks are kept @param {PresetInfo} preset */
  async open(story, take, name, chunk, preset) {
    this.leave();
    [this.take, this.preset] = [take, preset];
    setText(byId("branch-title"), `Branch from ${name.toLowerCase()}`);
    this.range.max = String(take.made_chunks);
    this.range.value = String(Math.min(chunk, take.made_chunks));
    this.caption.value = "";
    this.video.hidden = true;
    this.moved();
    this.dialog.showModal();
    this.caption.focus();
    const film = await takeFilm(story, take.node).catch(() => null);
    if (film === null || this.take !== take || !this.dialog.open) return;
    this.url = URL.createObjectURL(film);
    this.video.src = this.url;
    this.video.hidden = false;
    this.moved();
  }

  moved() {
    if (this.take === null || this.preset === null) return;
    const { chunk, preset } = this;
    const [at, end] = [chunk, this.take.made_chunks].map((count) => secondsOf(count, preset));
    const place = chunk === 0 ? "In place of this shot" : chunk === this.take.made_chunks ? `At its end, ${at.toFixed(1)} s` : `After ${at.toFixed(1)} of ${end.toFixed(1)} s`;
    setText(byId("branch-at"), place);
    this.range.setAttribute("aria-valuetext", place);
    this.caption.required = chunk === 0;
    this.caption.placeholder = chunk === 0 ? "What is seen instead" : "Empty: this take goes on from there";
    if (this.url) this.video.currentTime = Math.max(0, at - 0.5 / preset.fps);
  }

  leave() {
    this.take = null;
    if (!this.url) return;
    this.video.removeAttribute("src");
    URL.revokeObjectURL(this.url);
    this.url = "";
  }
}
