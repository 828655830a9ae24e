// @ts-check
/**
 * Plays chunks through Media Source Extensions.
 *
 * The media timeline only ever grows. Inside an epoch a chunk's place follows from its place on the story clock; a chunk
 * of a new epoch (a cut, say) is appended behind everything that is buffered and jumped to, so that buffered pictures are
 * never overwritten and what they would have shown is never seen. All places are whole frames; one is `1 / fps` seconds.
 *
 * Media frame: counts on the media timeline. Story frame: counts on the story clock.
 *
 * @typedef {import("./protocol.js").MediaHeader} MediaHeader
 *
 * @typedef {Object} Segment
 * @property {number} mediaStart   media frame of its first picture
 * @property {number} numFrames
 * @property {number} validFrames  how many of them are part of the story; a cut makes the rest void
 * @property {MediaHeader} header
 *
 * @typedef {Object} Shown
 * @property {Segment} segment
 * @property {number} frame        within the segment
 * @property {number} at           page clock, ms, when it is on screen
 *
 * @typedef {Object} Listeners
 * @property {(shown: Shown) => void} [shown]    each picture that reaches the screen, slate excepted
 * @property {(live: boolean) => void} [live]    looking back began or ended
 * @property {(starved: boolean) => void} [starved]   the pictures ran out while they should go on, or came again
 * @property {(message: string) => void} [failed]
 *
 * @typedef {{bytes: Uint8Array<ArrayBuffer>, header: MediaHeader}} Append
 */

/** Beyond this the newest chunk is jumped to: the tab was hidden, or the machine asleep. */
const TOO_FAR_BEHIND_S = 1.8;
/** Chunks may arrive this much before they are needed without being hurried along. */
const SLACK_S = 0.3;
const HURRY_RATE = 1.06;
const SLACKS_WATCHED = 6;
/** Pictures kept for looking back. */
const KEPT_S = 240;
const EVICTED_AT_ONCE_S = 30;
/** With less than this left the last pictures are passing: browsers stop a little before the very end. */
const RUN_OUT_S = 0.2;
/** Run out for so long, the picture has been seen to freeze. */
const STARVED_MS = 500;

export class Player {
  /**
   * @param {HTMLVideoElement} video
   * @param {{mime: string, fps: number, listeners?: Listeners, openSource?: () => MediaSource,
   *   now?: () => number}} options
   */
  constructor(video, { mime, fps, listeners = {}, openSource = () => new MediaSource(), now = () => performance.now() }) {
    this.video = video;
    this.mime = mime;
    this.fps = fps;
    this.listeners = listeners;
    this.openSource = openSource;
    this.now = now;
    /** @type {SourceBuffer | null} */
    this.buffer = null;
    /** @type {Uint8Array<ArrayBuffer> | null} */
    this.initSegment = null;
    /** @type {Append[]} */
    this.waiting = [];
    /** @type {(() => void) | null} What to do when the buffer has taken what it was given. */
    this.afterUpdate = null;
    /** @type {Segment[]} In the order of the media timeline. */
    this.segments = [];
    this.end = 0;
    /** @type {number | null} */
    this.epoch = null;
    /** Story frame that follows on what was appended last. */
    this.nextStart = 0;
    /** @type {number[]} How early the newest chunks came, seconds. */
    this.slacks = [];
    this.isLive = true;
    this.isPaused = false;
    /** Whether the server makes pictures now, and in time. */
    this.isRolling = false;
    this.isStarved = false;
    /** Since when there is next to nothing to play, page clock, ms. @type {number | null} */
    this.dryFrom = null;
    this.lastShown = -1;
    /** @type {number[]} */
    this.shownTimes = [];
  }

  /**
   * Why this browser cannot play such a stream; empty if it can.
   *
   * @param {string} mime
   */
  static unsupported(mime) {
    if (!("MediaSource" in globalThis)) {
      return "It has no Media Source Extensions. Use a current Chrome, Edge or Firefox, or Safari on a Mac or an iPad.";
    }
    if (!MediaSource.isTypeSupported(mime)) {
      return `It cannot decode H.264 (${mime}). Use a current Chrome, Edge, Firefox or Safari with H.264 installed.`;
    }
    return "";
  }

  /** Take the init segment. The same one again, after a reconnect, changes nothing. @param {Uint8Array<ArrayBuffer>} bytes */
  init(bytes) {
    if (this.initSegment !== null) return;
    this.initSegment = bytes;
    const source = this.openSource();
    source.addEventListener("sourceopen", () => this.opened(source), { once: true });
    this.video.src = URL.createObjectURL(source);
    this.watchFrames();
  }

  /** Take a chunk or the slate. @param {MediaHeader} header @param {Uint8Array<ArrayBuffer>} bytes */
  append(header, bytes) {
    if (header.slate && this.segments.length) return;
    this.waiting.push({ bytes, header });
    this.pump();
  }

  /** Seconds of pictures between the playhead and the end. */
  get lead() {
    return this.end / this.fps - this.video.currentTime;
  }

  /** Distinct pictures that reached the screen in the last two seconds, per second. */
  get framesPerSecond() {
    const since = this.now() - 2000;
    this.shownTimes = this.shownTimes.filter((time) => time > since);
    return this.shownTimes.length / 2;
  }

  /** Stop or go on with the story's own pause. @param {boolean} paused */
  setPaused(paused) {
    this.isPaused = paused;
    if (paused && this.isLive) this.video.pause();
    else this.play();
  }

  /**
   * Play a shot again. False if its pictures are no longer kept.
   *
   * @param {number} shot @param {number} take
   * @param {number} [start] its place on the story clock, where shots of other branches have the same numbers
   */
  lookBack(shot, take, start) {
    const first = this.firstOf(shot, take, start);
    if (first === undefined) return false;
    this.setLive(false);
    this.video.playbackRate = 1;
    this.seek(first.mediaStart);
    this.play();
    return true;
  }

  /** The earliest kept segment of the newest shot with these numbers. @param {number} shot @param {number} take @param {number} [start] */
  firstOf(shot, take, start) {
    /** @param {Segment} segment */
    const belongs = ({ header, validFrames }) =>
      !header.slate && header.shot === shot && header.take === take && validFrames > 0;
    if (start !== undefined) return this.segments.findLast((one) => belongs(one) && one.header.start === start);
    let index = this.segments.findLastIndex(belongs);
    while (index > 0 && belongs(this.segments[index - 1])) index -= 1;
    return this.segments[index];
  }

  /** Return to the newest chunk. */
  goLive() {
    const newest = this.segments.at(-1);
    this.setLive(true);
    if (newest !== undefined && this.video.currentTime < newest.mediaStart / this.fps) this.seek(newest.mediaStart);
    if (this.isPaused) this.video.pause();
    else this.play();
  }

  /** A few times a second: keep to the live edge, or, looking back, to what was part of the story. */
  tick() {
    this.watchForDrought();
    if (!this.isLive) this.skipVoid();
    else if (this.lead > TOO_FAR_BEHIND_S && !this.isPaused && !this.video.seeking) this.goLive();
    else this.video.playbackRate = this.hurries() ? HURRY_RATE : 1;
  }

  /** Whether the network or the server keep pictures from coming. Before the first one there is none to freeze. */
  watchForDrought() {
    const shows = this.segments.at(-1)?.header.slate === false;
    const isDry = shows && this.isRolling && this.isLive && !this.isPaused && this.lead < RUN_OUT_S;
    this.dryFrom = isDry ? this.dryFrom ?? this.now() : null;
    const starved = this.dryFrom !== null && this.now() - this.dryFrom > STARVED_MS;
    if (starved === this.isStarved) return;
    this.isStarved = starved;
    this.listeners.starved?.(starved);
  }

  /** The last picture that was shown, in the story's own size. @returns {HTMLCanvasElement} */
  picture() {
    const canvas = document.createElement("canvas");
    canvas.width = this.video.videoWidth;
    canvas.height = this.video.videoHeight;
    canvas.getContext("2d")?.drawImage(this.video, 0, 0);
    return canvas;
  }

  /** @param {MediaSource} source */
  opened(source) {
    URL.revokeObjectURL(this.video.src);
    const buffer = source.addSourceBuffer(this.mime);
    buffer.mode = "segments";
    buffer.addEventListener("updateend", () => this.updated());
    buffer.addEventListener("error", () => this.listeners.failed?.("The browser could not read a chunk: reload the page."));
    this.buffer = buffer;
    if (this.initSegment) buffer.appendBuffer(this.initSegment);
  }

  updated() {
    const after = this.afterUpdate;
    this.afterUpdate = null;
    after?.();
    this.pump();
  }

  pump() {
    const { buffer } = this;
    if (buffer === null || buffer.updating) return;
    const next = this.waiting.shift();
    if (next === undefined) {
      this.evict(buffer);
      return;
    }
    if (this.isDuplicate(next.header)) {
      this.pump();
      return;
    }
    this.place(buffer, next);
  }

  /** After a reconnect the chunk on air is sent again, even if its epoch began with it. @param {MediaHeader} header */
  isDuplicate({ epoch, sequence, shot, chunk, take, start, newEpoch, liveEdge }) {
    /** @param {Segment} segment */
    const same = ({ header }) =>
      header.sequence === sequence && header.shot === shot && header.chunk === chunk && header.take === take &&
      header.start === start;
    return (!newEpoch || liveEdge) && epoch === this.epoch && start < this.nextStart && this.segments.slice(-8).some(same);
  }

  /** @param {SourceBuffer} buffer @param {Append} next */
  place(buffer, { bytes, header }) {
    const follows = header.slate || (header.epoch === this.epoch && !header.newEpoch && header.start >= this.nextStart);
    // Chunks that were left out for a slow viewer leave a hole in the story, never in the media: playback would stop there.
    const mediaStart = this.end;
    const jumps = !follows || header.liveEdge;
    try {
      buffer.timestampOffset = mediaStart / this.fps;
      buffer.appendBuffer(bytes);
    } catch (error) {
      this.refused(error, { bytes, header });
      return;
    }
    if (follows && !header.slate) this.slacks = [...this.slacks, this.lead].slice(-SLACKS_WATCHED);
    else this.slacks = [];
    this.enter(header, mediaStart, follows);
    this.afterUpdate = () => this.arrived(mediaStart, jumps && !header.slate);
  }

  /** @param {MediaHeader} header @param {number} mediaStart @param {boolean} follows */
  enter(header, mediaStart, follows) {
    if (!follows) this.voidFrom(header.start);
    const { numFrames } = header;
    this.segments.push({ mediaStart, numFrames, validFrames: header.slate ? 0 : numFrames, header });
    this.end = mediaStart + numFrames;
    if (header.slate) return;
    this.epoch = header.epoch;
    this.nextStart = header.start + header.numFrames;
  }

  /** Pictures of this story frame or later, sent before, are not part of the story any more. @param {number} start */
  voidFrom(start) {
    for (const segment of this.segments) {
      if (segment.header.slate || segment.header.epoch !== this.epoch) continue;
      segment.validFrames = Math.max(0, Math.min(segment.validFrames, start - segment.header.start));
    }
  }

  /** @param {number} mediaStart @param {boolean} jumps */
  arrived(mediaStart, jumps) {
    if (!this.isLive) return;
    if (jumps) this.seek(mediaStart);
    if (!this.isPaused) this.play();
  }

  /** @param {unknown} error @param {Append} next */
  refused(error, next) {
    if (error instanceof DOMException && error.name === "QuotaExceededError" && this.segments.length > 8) {
      this.waiting.unshift(next);
      this.drop(this.segments[Math.floor(this.segments.length / 2)].mediaStart);
      return;
    }
    this.listeners.failed?.("The browser stopped taking video: reload the page.");
  }

  /** @param {SourceBuffer} buffer */
  evict(buffer) {
    const oldest = this.segments[0]?.mediaStart ?? 0;
    if (!this.isLive || buffer.updating || (this.end - oldest) / this.fps < KEPT_S + EVICTED_AT_ONCE_S) return;
    this.drop(Math.floor(this.end - KEPT_S * this.fps));
  }

  /** Forget the pictures before a media frame. @param {number} before */
  drop(before) {
    const kept = this.segments.filter(({ mediaStart }) => mediaStart >= before);
    this.segments = kept;
    this.buffer?.remove(0, (kept[0]?.mediaStart ?? before) / this.fps);
  }

  hurries() {
    const early = Math.min(...this.slacks);
    const enough = this.video.playbackRate > 1 ? SLACK_S / 2 : SLACK_S;
    return this.slacks.length === SLACKS_WATCHED && early > enough && this.lead > enough;
  }

  skipVoid() {
    if (this.video.seeking) return;
    const frame = this.mediaFrame(this.video.currentTime);
    const here = this.segmentAt(frame);
    if (here !== undefined && frame < here.mediaStart + here.validFrames) {
      if (here === this.segments.at(-1)) this.setLive(true);
      return;
    }
    const next = this.segments.find(({ mediaStart, validFrames }) => mediaStart > frame && validFrames > 0);
    if (next === undefined) this.goLive();
    else this.seek(next.mediaStart);
  }

  /** @param {boolean} live */
  setLive(live) {
    if (live === this.isLive) return;
    this.isLive = live;
    this.slacks = [];
    this.listeners.live?.(live);
  }

  /** @param {number} mediaFrame */
  seek(mediaFrame) {
    this.video.currentTime = mediaFrame / this.fps;
  }

  play() {
    if (!this.video.paused) return;
    // Refused only where autoplay is off even for silent video; the click that follows comes here again.
    this.video.play().catch(() => {});
  }

  /** @param {number} seconds */
  mediaFrame(seconds) {
    return Math.floor(seconds * this.fps + 0.01);
  }

  /** @param {number} mediaFrame */
  segmentAt(mediaFrame) {
    return this.segments.findLast((one) => one.mediaStart <= mediaFrame && mediaFrame < one.mediaStart + one.numFrames);
  }

  watchFrames() {
    const { video } = this;
    if ("requestVideoFrameCallback" in video) {
      /** @type {VideoFrameRequestCallback} */
      const next = (_now, { mediaTime, expectedDisplayTime }) => {
        this.showed(mediaTime, expectedDisplayTime);
        video.requestVideoFrameCallback(next);
      };
      video.requestVideoFrameCallback(next);
      return;
    }
    const poll = () => {
      this.showed(/** @type {HTMLVideoElement} */ (video).currentTime, this.now());
      requestAnimationFrame(poll);
    };
    requestAnimationFrame(poll);
  }

  /** @param {number} mediaTime seconds @param {number} at page clock, ms */
  showed(mediaTime, at) {
    const mediaFrame = this.mediaFrame(mediaTime);
    const segment = this.segmentAt(mediaFrame);
    if (mediaFrame === this.lastShown || segment === undefined || segment.header.slate) return;
    this.lastShown = mediaFrame;
    this.shownTimes.push(at);
    this.listeners.shown?.({ segment, frame: mediaFrame - segment.mediaStart, at });
  }
}
