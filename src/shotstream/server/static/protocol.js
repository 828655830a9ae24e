// @ts-check
/**
 * The wire as the page sees it: types of the JSON messages and the reader of media messages. The server's dataclasses
 * (`server/protocol.py`, described in docs/protocol.md) are the definition.
 *
 * Times with "frame" or "start" in their name count frames on the story clock.
 *
 * @typedef {{shot: number, chunk: number}} At
 * @typedef {{shot: number, frame: number}} FrameRef
 * @typedef {"allotted" | "matches" | "pinned" | "picture"} Reason
 * @typedef {{shot: number, frame: number, reason: Reason, caption: string, thumbnail: string}} RememberedFrame
 * @typedef {"idle" | "loading" | "warming" | "queued" | "live" | "late" | "holding" | "paused" | "error"} StatusState
 * @typedef {"start" | "cut" | "steer" | "extend" | "pause" | "resume" | "stop" | "memory" | "branch" | "retake" | "undo"
 *   | "hide" | "cancel"} CommandKind
 *
 * @typedef {{kind: "accepted", id: string, command: string, text: string, at: At | null}} Accepted
 * @typedef {{kind: "ended", id: string, command: string, outcome: "applied" | "superseded" | "failed",
 *   shot: number | null, chunk: number | null, first_frame: number | null, caption: string, left_out: string[],
 *   reason: string}} Ended
 * @typedef {{kind: "shot_opened", node: number, parent: number | null, shot: number, take: number, start: number, text: string,
 *   caption: string, num_chunks: number, context: RememberedFrame[], aired_before: number | null, thumbnail: string}} ShotOpened
 * @typedef {{kind: "chunk", node: number, shot: number, chunk: number, take: number, sequence: number, epoch: number,
 *   start: number, num_frames: number, caption: string, applied: string[], num_chunks: number, compute_ms: number,
 *   latency_ms: number | null}} ChunkReady
 * @typedef {{node: number, parent: number | null, parent_frames: number | null, origin: number | null, shot: number,
 *   take: number, text: string, caption: string, num_chunks: number, made_chunks: number, hidden: boolean, live: boolean,
 *   thumbnail: string}} Take
 * @typedef {{kind: "tree", head: number | null, takes: Take[], shots: ShotCard[] | null, opening: boolean}} TreeChanged
 * @typedef {{kind: "memory", frames: RememberedFrame[]}} MemoryChanged
 * @typedef {{title: string, state: "playing" | "finished" | "interrupted", opened: number, num_shots: number,
 *   following: string, reason: string}} Performance
 * @typedef {{kind: "performance", performance: Performance}} PerformanceChanged
 * @typedef {{kind: "status", state: StatusState, detail: string, late_ms: number, queue_position: number | null,
 *   clock_frame: number, clock_running: boolean}} Status
 * @typedef {{id: string, chunk: number, first_frame: number, text: string}} SteerMark
 * @typedef {{node: number, shot: number, take: number, start: number, text: string, caption: string, num_chunks: number,
 *   made_chunks: number, context: RememberedFrame[], steers: SteerMark[], thumbnail: string}} ShotCard
 * @typedef {{id: string, command: string, text: string, at: At | null}} Pending
 * @typedef {{status: Omit<Status, "kind">, global_caption: string, seed: number, epoch: number, shots: ShotCard[],
 *   head: number | null, takes: Take[], pending: Pending[], memory: RememberedFrame[], performance?: Performance | null,
 *   left_out?: string[]}} StorySnapshot
 * @typedef {{name: string, width: number, height: number, fps: number, mime: string, first_chunk_frames: number,
 *   chunk_frames: number, chunks_per_shot: number, memory_frames: number, suggestions: string[]}} PresetInfo
 * @typedef {{kind: "hello", protocol: number, viewer: string, story: string, role: "director" | "watcher", seq: number,
 *   replayed: number, preset: PresetInfo, writer: string, snapshot: StorySnapshot}} Hello
 * @typedef {{kind: "gap", first_sequence: number, last_sequence: number, num_frames: number}} Gap
 * @typedef {{kind: "metrics", frames_per_second: number, chunk_ms_p50: number, chunk_ms_p95: number,
 *   encode_ms_p50: number, late_chunks: number, viewers: number, instruction_ms: number | null}} Metrics
 * @typedef {{kind: "error", code: string, message: string, id: string, fatal: boolean}} ServerError
 *
 * @typedef {(Accepted | Ended | ShotOpened | ChunkReady | TreeChanged | MemoryChanged | PerformanceChanged | Status) & {seq: number}} StoryEvent
 * @typedef {StoryEvent | Hello | Gap | Metrics | ServerError} ServerMessage
 *
 * @typedef {{kind: CommandKind, id: string, text?: string, [field: string]: unknown}} Command
 *
 * @typedef {Object} MediaHeader
 * @property {boolean} init        the payload is the init segment
 * @property {boolean} slate       a plain picture that warms the decoder up
 * @property {boolean} newEpoch    the clock broke: what was sent before for this time or later is void
 * @property {boolean} liveEdge    the first chunk after joining
 * @property {number} numFrames
 * @property {number} shot
 * @property {number} chunk
 * @property {number} take
 * @property {number} sequence
 * @property {number} epoch
 * @property {number} start
 */

export const PROTOCOL_VERSION = 1;

const MEDIA_VERSION = 1;
const HEADER_BYTES = 28;
const FLAG = { init: 1, slate: 2, newEpoch: 4, liveEdge: 8 };

/**
 * Read a binary message: 28 bytes of header, little endian, then one fMP4 segment.
 *
 * @param {ArrayBuffer} message
 * @returns {{header: MediaHeader, payload: Uint8Array<ArrayBuffer>}}
 */
export function readMedia(message) {
  const view = new DataView(message);
  if (message.byteLength < HEADER_BYTES || view.getUint8(0) !== MEDIA_VERSION) {
    throw new Error(`not a media message of version ${MEDIA_VERSION}: reload the page`);
  }
  const flags = view.getUint8(1);
  const [shot, chunk, take, sequence, epoch, start] = [4, 8, 12, 16, 20, 24].map((at) => view.getUint32(at, true));
  const header = {
    init: Boolean(flags & FLAG.init),
    slate: Boolean(flags & FLAG.slate),
    newEpoch: Boolean(flags & FLAG.newEpoch),
    liveEdge: Boolean(flags & FLAG.liveEdge),
    numFrames: view.getUint16(2, true),
    shot, chunk, take, sequence, epoch, start,
  };
  return { header, payload: new Uint8Array(message, HEADER_BYTES) };
}
