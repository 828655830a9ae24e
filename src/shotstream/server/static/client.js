// @ts-check
/**
 * The socket: joins, reconnects without losing an event, and turns messages into calls. Knows nothing of the page.
 *
 * @typedef {import("./protocol.js").ServerMessage} ServerMessage
 * @typedef {import("./protocol.js").MediaHeader} MediaHeader
 *
 * @typedef {{phase: "connecting" | "open" | "waiting" | "refused", code?: string, reason?: string}} Connection
 *
 * @typedef {Object} Listeners
 * @property {(message: ServerMessage) => void} message
 * @property {(header: MediaHeader, payload: Uint8Array<ArrayBuffer>) => void} media
 * @property {(connection: Connection) => void} connection
 */

import { PROTOCOL_VERSION, readMedia } from "./protocol.js";

const FIRST_RETRY_MS = 250;
const LONGEST_RETRY_MS = 5000;
/** A live story speaks every two seconds; a socket that says nothing for this long is dead, whatever the system thinks. */
const SILENCE_MS = 7000;
/** What comes after a pause like this was on its way for long: not live any more. A story that is late speaks less often. */
const ASLEEP_MS = { live: 2000, late: 4500 };

export class Client {
  /**
   * @param {{url: string, story: string, token: string, listeners: Listeners,
   *   openSocket?: (url: string) => WebSocket, now?: () => number}} options
   */
  constructor({ url, story, token, listeners, openSocket = (address) => new WebSocket(address), now = () => performance.now() }) {
    this.url = url;
    this.story = story;
    this.token = token;
    this.listeners = listeners;
    this.openSocket = openSocket;
    this.now = now;
    this.lastHeard = this.lastBeat = now();
    /** @type {WebSocket | null} */
    this.socket = null;
    /** @type {number | null} Sequence number of the last event seen. */
    this.lastSeq = null;
    this.attempt = 0;
    this.joined = false;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.retryTimer = undefined;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.silenceTimer = undefined;
    /** @type {"live" | "late" | ""} Whether, and how, the story runs: then the server is never silent for long. */
    this.runs = "";
    this.awaitsReply = false;
    /** Why the server cannot take us now, in its words. */
    this.unavailable = "";
  }

  connect() {
    clearTimeout(this.retryTimer);
    this.drop();
    this.listeners.connection({ phase: "connecting" });
    const socket = this.openSocket(this.url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.join(socket);
    socket.onmessage = ({ data }) => this.receive(data);
    socket.onclose = ({ code, reason }) => this.closed(code, reason);
    this.socket = socket;
  }

  /** Reconnect at once if the client is waiting to. */
  retryNow() {
    if (this.socket === null) this.connect();
  }

  /**
   * Send a command. False if there is no connection: nothing was sent, nothing is kept.
   *
   * @param {import("./protocol.js").Command} command
   */
  send(command) {
    if (!this.joined || this.socket === null) return false;
    this.socket.send(JSON.stringify(command));
    this.awaitsReply = true;
    this.listenForSilence();
    return true;
  }

  /** @param {WebSocket} socket */
  join(socket) {
    const resume = this.lastSeq === null ? {} : { resume_from: this.lastSeq };
    const body = { kind: "join", protocol: PROTOCOL_VERSION, story: this.story, token: this.token, ...resume };
    socket.send(JSON.stringify(body));
  }

  /** Call it a few times a second: where it stops, the page is asleep. */
  beat() {
    this.lastBeat = this.now();
  }

  /** Whether this page slept, or its socket did: what waits in it is old, and joining again leads to what is on air. */
  slept() {
    const now = this.now();
    const socketSlept = this.runs !== "" && now - this.lastHeard > ASLEEP_MS[this.runs];
    // Of a story that stands still nothing but a word every two seconds is heard, and a hidden page's timers may rest.
    const pageSlept = Math.min(now - this.lastHeard, now - this.lastBeat) > ASLEEP_MS[this.runs || "late"];
    this.lastHeard = this.lastBeat = now;
    return this.joined && (socketSlept || pageSlept);
  }

  /** @param {string | ArrayBuffer} data */
  receive(data) {
    if (this.slept()) {
      this.connect();
      return;
    }
    this.awaitsReply = false;
    this.listenForSilence();
    if (typeof data === "string") {
      this.receiveMessage(JSON.parse(data));
      return;
    }
    const { header, payload } = readMedia(data);
    if (!header.init && !header.slate) this.socket?.send(JSON.stringify({ kind: "ack", sequence: header.sequence }));
    this.listeners.media(header, payload);
  }

  /** @param {ServerMessage} message */
  receiveMessage(message) {
    if (message.kind === "hello") {
      this.joined = true;
      this.attempt = 0;
      // Where missed events follow, each of them moves the mark; a restarted server counts from the beginning.
      if (this.lastSeq === null || !message.replayed || message.seq < this.lastSeq) this.lastSeq = message.seq;
      this.listeners.connection({ phase: "open" });
      this.runs = runs(message.snapshot.status.state);
    }
    if ("seq" in message && message.kind !== "hello") this.lastSeq = message.seq;
    if (message.kind === "status") this.runs = runs(message.state);
    this.listeners.message(message);
    // What is unavailable now may be available later; the server closes and the client tries again.
    if (message.kind === "error" && message.fatal && message.code !== "unavailable") this.refuse(message.code, this.reasonOf(message));
    if (message.kind === "error" && message.code === "unavailable") this.unavailable = message.message;
  }

  /** Who came by a link is told about it, not about the server's token. @param {import("./protocol.js").ServerError} error */
  reasonOf({ code, message }) {
    return code === "unauthorized" && this.token ? NOT_VALID : message;
  }

  /** @param {string} code @param {string} reason */
  refuse(code, reason) {
    this.drop();
    this.listeners.connection({ phase: "refused", code, reason });
  }

  /** @param {number} code @param {string} reason */
  closed(code, reason) {
    this.drop();
    if (code === POLICY_VIOLATION) {
      this.refuse("unauthorized", reason || NOT_VALID);
      return;
    }
    const delay = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.attempt) * (0.75 + Math.random() / 2);
    this.attempt += 1;
    this.retryTimer = setTimeout(() => this.connect(), delay);
    this.listeners.connection({ phase: "waiting", reason: this.unavailable || reason });
    this.unavailable = "";
  }

  listenForSilence() {
    clearTimeout(this.silenceTimer);
    this.silenceTimer = setTimeout(() => {
      if ((this.runs || this.awaitsReply) && this.socket !== null) this.closed(0, "the server fell silent");
    }, SILENCE_MS);
  }

  drop() {
    clearTimeout(this.silenceTimer);
    this.joined = false;
    const socket = this.socket;
    this.socket = null;
    if (socket === null) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }
}

const POLICY_VIOLATION = 1008;
const NOT_VALID = "This link is not valid, or not any more: ask for another one, or log in with the server's token.";

/** @param {import("./protocol.js").StatusState} state */
const runs = (state) => (state === "live" || state === "late" ? state : "");
