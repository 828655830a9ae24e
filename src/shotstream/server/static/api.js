// @ts-check
/**
 * REST for kept stories, as the page uses it (described at /openapi.json). What the server refuses it says in words for
 * people; they come as `Refused`.
 *
 * @typedef {{name: string, title: string, url: string, seconds: number, bytes: number, num_takes: number, changed: number,
 *   live: boolean, viewers: number, thumbnail: string}} StoryCard
 */

import { sentence } from "./state.js";

/** The server will not do it, or cannot be reached. */
export class Refused extends Error {
  /** @param {string} message @param {number} status 0: there was no answer */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** @type {Promise<unknown>} What every request waits for. */
let admitted = Promise.resolve();

/** Exchange a director's token for the cookie that goes with every request, pictures and films included. @param {string} token */
export function admit(token) {
  admitted = send("/api/login", { method: "POST", json: { token } }).catch(() => null);
}

/**
 * @param {string} path
 * @param {{method?: string, json?: unknown, text?: string}} [options]
 * @returns {Promise<Response>}
 */
export async function request(path, options = {}) {
  await admitted;
  return send(path, options);
}

/** @param {string} path @param {{method?: string, json?: unknown, text?: string}} options */
async function send(path, { method = "GET", json, text }) {
  const body = text ?? (json === undefined ? undefined : JSON.stringify(json));
  const headers = { "content-type": text === undefined ? "application/json" : "application/yaml" };
  const answer = await fetch(path, { method, body, headers: body === undefined ? {} : headers }).catch(() => null);
  if (answer === null) throw new Refused("The server does not answer: try again in a moment.", 0);
  if (!answer.ok) throw new Refused(await reasonIn(answer), answer.status);
  return answer;
}

/** @param {Response} answer @returns {Promise<string>} */
async function reasonIn(answer) {
  const words = await answer.text();
  try {
    const { detail } = JSON.parse(words);
    if (typeof detail === "string") return sentence(detail);
  } catch {
    // not JSON: the words themselves
  }
  return sentence(words || `the server answered ${answer.status}`);
}

/** @param {string} name */
const storyPath = (name) => `/api/stories/${encodeURIComponent(name)}`;

export const stories = {
  /** @returns {Promise<StoryCard[]>} the one that changed last first */
  list: async () => (await request("/api/stories")).json(),
  /** @param {string} name @returns {Promise<StoryCard>} */
  get: async (name) => (await request(storyPath(name))).json(),
  /** @param {string} name @param {string} title @returns {Promise<StoryCard>} */
  rename: async (name, title) => (await request(storyPath(name), { method: "PATCH", json: { title } })).json(),
  /** @param {string} name @returns {Promise<StoryCard>} */
  duplicate: async (name) => (await request(`${storyPath(name)}/duplicate`, { method: "POST", json: {} })).json(),
  /** @param {string} name */
  remove: async (name) => request(storyPath(name), { method: "DELETE" }),
};

/** The whole of a take as mp4. @param {string} story @param {number} node @returns {Promise<Blob>} */
export async function takeFilm(story, node) {
  return (await request(`${storyPath(story)}/takes/${node}/film.mp4`)).blob();
}

/**
 * A film in one of the formats.
 *
 * @param {string} story
 * @param {string} format
 * @param {number[]} takes   in the order in which they are shown; none: the live path
 * @returns {Promise<Blob>}
 */
export async function exported(story, format, takes) {
  const query = takes.map((node) => `takes=${node}`).join("&");
  return (await request(`${storyPath(story)}/export.${format}${query && "?"}${query}`)).blob();
}

export const watchLinks = {
  /** @returns {Promise<{id: string}[]>} */
  list: async () => (await request("/api/watch-links")).json(),
  /** @returns {Promise<{id: string, token: string}>} the token is told this once */
  create: async () => (await request("/api/watch-links", { method: "POST" })).json(),
  /** Who watches by it is disconnected. @param {string} id */
  revoke: async (id) => request(`/api/watch-links/${encodeURIComponent(id)}`, { method: "DELETE" }),
};

/**
 * Play a story file live. What is going to be played; how it goes on say `performance` events.
 *
 * @param {string} story
 * @param {string} text YAML
 * @returns {Promise<{title: string, seconds: number, shots: {caption: string, seconds: number, steers: number}[]}>}
 */
export async function playStory(story, text) {
  return (await request(`${storyPath(story)}/play`, { method: "POST", text })).json();
}

/** Drop what is left of a story file that is played; the running shot goes on. @param {string} story */
export async function interruptPlay(story) {
  await request(`${storyPath(story)}/play`, { method: "DELETE" });
}
