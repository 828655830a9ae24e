// @ts-check
/**
 * Shows one take, or two side by side that play in step: one video leads, the other is kept at the same picture.
 *
 * @typedef {import("./protocol.js").Take} Take
 * @typedef {{take: Take, name: string}} Named
 * @typedef {{video: HTMLVideoElement, url: string}} Screen
 */

import { takeFilm } from "./api.js";
import { element, setText } from "./views.js";

/** Beyond this a video is put to its place at once instead of being hurried or slowed. */
const JUMP_S = 0.3;
const LARGEST_RATE_CHANGE = 0.2;

/** @template {HTMLElement} T @param {string} id @returns {T} */
const byId = (id) => /** @type {T} */ (document.getElementById(id));

export class Screening {
  /** @param {{makeLive: (take: Take) => void}} acts */
  constructor({ makeLive }) {
    this.makeLive = makeLive;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("screening"));
    this.bar = /** @type {HTMLInputElement} */ (byId("screening-bar"));
    this.fps = 16;
    /** @type {Screen[]} the longest first: it leads */
    this.screens = [];
    this.playing = false;
    this.visit = 0;
    this.dialog.addEventListener("close", () => this.leave());
    this.dialog.addEventListener("keydown", (event) => this.pressed(event));
    byId("screening-play").addEventListener("click", () => this.setPlaying(!this.playing));
    byId("screening-back").addEventListener("click", () => this.step(-1));
    byId("screening-next").addEventListener("click", () => this.step(1));
    this.bar.addEventListener("input", () => {
      this.setPlaying(false);
      this.goTo(Number(this.bar.value));
    });
  }

  /** @param {string} story @param {Named[]} takes one or two @param {number} fps */
  async open(story, takes, fps) {
    this.leave();
    const visit = this.visit;
    this.fps = fps;
    setText(byId("screening-title"), takes.length > 1 ? "Two takes in step" : takes[0].name);
    setText(byId("screening-note"), "Loading …");
    const drawn = takes.map((one) => this.draw(one));
    byId("screens").replaceChildren(...drawn.map(({ figure }) => figure));
    byId("screens").classList.toggle("pair", takes.length > 1);
    if (!this.dialog.open) this.dialog.showModal();
    byId("screening-play").focus();
    try {
      const loaded = await Promise.all(drawn.map(async ({ take, video }) => load(video, await takeFilm(story, take.node))));
      if (visit !== this.visit) return;
      this.begin(loaded);
    } catch (error) {
      if (visit === this.visit) setText(byId("screening-note"), error instanceof Error ? error.message : String(error));
    }
  }

  /** @param {Named} named */
  draw({ take, name }) {
    const video = element("video", { label: `${name}: ${take.caption}` });
    video.muted = true;
    video.playsInline = true;
    const live = element("button", { class: "tool", text: take.live ? "Go on here" : "Make live" }, element("span", { class: "hidden", text: `: ${name}` }));
    live.type = "button";
    live.addEventListener("click", () => {
      this.makeLive(take);
      this.dialog.close();
    });
    const length = element("small");
    video.addEventListener("loadedmetadata", () => setText(length, ` · ${video.duration.toFixed(1)} s`));
    const words = element("div", {}, element("b", { text: name }, length), element("span", { text: take.text || take.caption }));
    return { take, video, figure: element("figure", {}, video, element("figcaption", {}, words, live)) };
  }

  /** @param {Screen[]} screens */
  begin(screens) {
    this.screens = screens.toSorted((one, other) => other.video.duration - one.video.duration);
    this.bar.max = String(this.numFrames - 1);
    setText(byId("screening-note"), "");
    this.setPlaying(true);
    this.tick(this.visit);
  }

  get numFrames() {
    return Math.max(1, Math.round((this.screens[0]?.video.duration ?? 0) * this.fps));
  }

  /** Picture of the leading video, from 0. */
  get frame() {
    return Math.min(this.numFrames - 1, Math.floor((this.screens[0]?.video.currentTime ?? 0) * this.fps + 0.01));
  }

  /** @param {boolean} playing */
  setPlaying(playing) {
    if (!this.screens.length) return;
    if (playing && this.screens[0].video.ended) this.goTo(0);
    if (!playing && this.playing) this.goTo(this.frame);
    this.playing = playing;
    const button = byId("screening-play");
    setText(button, playing ? "Pause" : "Play");
    for (const { video } of this.screens) {
      video.playbackRate = 1;
      if (playing && !video.ended) video.play().catch(() => {});
      else video.pause();
    }
  }

  /** Put all videos at the middle of a picture. @param {number} frame */
  goTo(frame) {
    const wanted = Math.max(0, Math.min(this.numFrames - 1, frame));
    for (const { video } of this.screens) {
      const last = Math.round(video.duration * this.fps) - 1;
      video.currentTime = (Math.min(wanted, last) + 0.5) / this.fps;
    }
    this.show(wanted);
  }

  /** @param {number} frames */
  step(frames) {
    const from = this.frame;
    this.setPlaying(false);
    this.goTo(from + frames);
  }

  /** Keep together what plays, and begin again at the end. @param {number} visit */
  tick(visit) {
    if (visit !== this.visit || !this.screens.length) return;
    const [leader, ...others] = this.screens.map(({ video }) => video);
    if (this.playing && leader.ended) {
      this.goTo(0);
      this.setPlaying(true);
    }
    if (this.playing) others.forEach((video) => follow(video, leader));
    if (this.playing) this.show(this.frame);
    requestAnimationFrame(() => this.tick(visit));
  }

  /** @param {number} frame */
  show(frame) {
    if (this.bar.value !== String(frame)) this.bar.value = String(frame);
    const time = `${(frame / this.fps).toFixed(1)} s`;
    setText(byId("screening-time"), time);
    this.bar.setAttribute("aria-valuetext", time);
  }

  /** @param {KeyboardEvent} event */
  pressed(event) {
    const at = /** @type {HTMLElement} */ (event.target);
    if (event.key === " " && !at.closest("button")) this.setPlaying(!this.playing);
    else if (event.key === "ArrowLeft" && at !== this.bar) this.step(-1);
    else if (event.key === "ArrowRight" && at !== this.bar) this.step(1);
    else return;
    event.preventDefault();
  }

  leave() {
    this.visit += 1;
    this.playing = false;
    for (const { video, url } of this.screens) {
      video.pause();
      video.removeAttribute("src");
      URL.revokeObjectURL(url);
    }
    this.screens = [];
    byId("screens").replaceChildren();
  }
}

/** @param {HTMLVideoElement} video @param {Blob} film @returns {Promise<Screen>} when it can play */
function load(video, film) {
  const url = URL.createObjectURL(film);
  return new Promise((resolve, reject) => {
    video.addEventListener("canplaythrough", () => resolve({ video, url }), { once: true });
    video.addEventListener("error", () => reject(new Error("This take cannot be played here.")), { once: true });
    video.src = url;
  });
}

/** Bring a video to the picture of the one that leads. @param {HTMLVideoElement} video @param {HTMLVideoElement} leader */
function follow(video, leader) {
  const ahead = video.currentTime - Math.min(leader.currentTime, video.duration);
  if (video.ended && leader.currentTime >= video.duration - 0.05) return;
  if (Math.abs(ahead) > JUMP_S) video.currentTime = leader.currentTime;
  video.playbackRate = 1 - Math.max(-LARGEST_RATE_CHANGE, Math.min(LARGEST_RATE_CHANGE, 2 * ahead));
  if (video.paused && !video.ended) video.play().catch(() => {});
}
