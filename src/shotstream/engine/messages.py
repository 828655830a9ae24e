"""What is said about a running story: commands to it and events from it.

Frozen dataclasses without behaviour. They cross every boundary there is (threads, socket, log), so this file imports
nothing of ours. The wire form, its schema and its limits live in `server/protocol.py`.

Time is counted on the story clock: frames that were on air since the story began, at the preset's frames per second.
The clock stands still while the story is paused or waits for direction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

MAX_TEXT = 2000
MAX_ID = 64
MAX_PICTURE = 2_000_000


def text_field(maximum: int = MAX_TEXT, default: str | None = None) -> str:
    """A field of text with at most `maximum` characters; without a default it must be given and not be blank."""
    if default is None:
        return field(metadata={"max": maximum, "blank": False})  # type: ignore[no-any-return]
    return field(default=default, metadata={"max": maximum})


def number_field(minimum: int, maximum: int, default: int | None = None, *, optional: bool = False) -> int:
    """A whole number in [minimum, maximum]."""
    metadata = {"min": minimum, "max": maximum}
    if default is None and not optional:
        return field(metadata=metadata)  # type: ignore[no-any-return]
    return field(default=default, metadata=metadata)  # type: ignore[return-value]


MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class At:
    """A chunk of a shot, both from 0."""

    shot: int = number_field(0, MAX_COUNT)
    chunk: int = number_field(0, MAX_COUNT)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameRef:
    """A picture in memory: pixel frame `frame` of shot `shot`; shot -1 holds pictures of the user's own."""

    shot: int = number_field(-1, MAX_COUNT)
    frame: int = number_field(0, MAX_COUNT)


# ---------------------------------------------------------------------------------------------------------------------
# Commands


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Begin the story with its first shot. Fails while a story is running."""

    kind: ClassVar[str] = "start"
    id: str = text_field(MAX_ID)
    text: str = text_field()
    global_caption: str = text_field(MAX_TEXT, "")
    """People, places and look of the whole story."""
    seed: int = number_field(0, MAX_COUNT, 0)
    num_chunks: int | None = number_field(1, 1000, optional=True)
    """Length of the first shot; none: the preset's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """End the running shot and open the next one: at once, or in place of the chunk named by `at`, without a break."""

    kind: ClassVar[str] = "cut"
    id: str = text_field(MAX_ID)
    text: str = text_field()
    num_chunks: int | None = number_field(1, 1000, optional=True)
    at: At | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Steer:
    """Change the running shot from its next chunk on, or from the chunk named by `at`."""

    kind: ClassVar[str] = "steer"
    id: str = text_field(MAX_ID)
    text: str = text_field()
    at: At | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Extend:
    """Let the running shot run longer."""

    kind: ClassVar[str] = "extend"
    id: str = text_field(MAX_ID)
    num_chunks: int = number_field(1, 1000, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """Stop the story clock. A chunk that is being made is still finished."""

    kind: ClassVar[str] = "pause"
    id: str = text_field(MAX_ID)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resume:
    """Let the story clock go on."""

    kind: ClassVar[str] = "resume"
    id: str = text_field(MAX_ID)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """End the story. `start` begins another one."""

    kind: ClassVar[str] = "stop"
    id: str = text_field(MAX_ID)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Change what the next cut remembers."""

    kind: ClassVar[str] = "memory"
    id: str = text_field(MAX_ID)
    action: Literal["pin", "remove", "add"]
    frame: FrameRef | None = None
    """What to pin or remove."""
    picture: str = text_field(MAX_PICTURE, "")
    """For `add`: a PNG, JPEG or WebP file in base64. It is cropped to the preset's shape and drawn anew."""
    caption: str = text_field(MAX_TEXT, "")
    """For `add`: what the picture shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """Go back to a point of the story and go on from there; what came after stays as another branch of its tree."""

    kind: ClassVar[str] = "branch"
    id: str = text_field(MAX_ID)
    node: int = number_field(1, MAX_COUNT)
    """The take to go back to."""
    chunk: int | None = number_field(0, MAX_COUNT, optional=True)
    """How many of its chunks are kept; none: all that were made. 0 with `text` puts another shot in its place."""
    text: str = text_field(MAX_TEXT, "")
    """Of the new shot that is opened there; empty: the take itself goes on, as if nothing had been said since."""
    num_chunks: int | None = number_field(1, 1000, optional=True)
    """Length of the new shot; none: the preset's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retake:
    """Make a shot again with other noise: its own captions, its steers at the same chunks, the next take number."""

    kind: ClassVar[str] = "retake"
    id: str = text_field(MAX_ID)
    node: int = number_field(1, MAX_COUNT)
    """The take to make again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Undo:
    """Go back to just before the newest cut or steer of the live path; a retake is taken back to the take before it."""

    kind: ClassVar[str] = "undo"
    id: str = text_field(MAX_ID)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hide:
    """Hide a take, and what follows it, from the tree, or show it again. Frames that are remembered stay."""

    kind: ClassVar[str] = "hide"
    id: str = text_field(MAX_ID)
    node: int = number_field(1, MAX_COUNT)
    hidden: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """Take back a command that is still pending."""

    kind: ClassVar[str] = "cancel"
    id: str = text_field(MAX_ID)
    target: str = text_field(MAX_ID)
    """Its id."""


Command = Start | Cut | Steer | Extend | Pause | Resume | Stop | Memory | Branch | Retake | Undo | Hide | Cancel


# ---------------------------------------------------------------------------------------------------------------------
# Events


@dataclass(frozen=True, kw_only=True, slots=True)
class RememberedFrame:
    """A picture in memory and why it is there."""

    shot: int
    frame: int
    reason: Literal["allotted", "matches", "pinned", "picture"]
    caption: str = ""
    """In force when it was shown."""
    thumbnail: str = ""
    """A small JPEG in base64, or empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """A command was understood. Exactly one `ended` will follow."""

    kind: ClassVar[str] = "accepted"
    id: str
    command: str
    """Its kind."""
    text: str = ""
    at: At | None = None


Outcome = Literal["applied", "superseded", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What became of a command."""

    kind: ClassVar[str] = "ended"
    id: str
    command: str
    outcome: Outcome
    shot: int | None = None
    """Where it took effect, with `chunk`."""
    chunk: int | None = None
    first_frame: int | None = None
    """Story-clock frame that is the first to show it."""
    caption: str = ""
    """The whole caption then in force, exactly as the text encoder saw it."""
    left_out: tuple[str, ...] = ()
    """Parts of captions that did not fit into the text encoder."""
    reason: str = ""
    """Why it was superseded or failed, or a notice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShotOpened:
    """A new shot is on air."""

    kind: ClassVar[str] = "shot_opened"
    node: int
    """Of the story's tree: this take of this shot."""
    parent: int | None
    """The take it follows; none: it begins the story."""
    shot: int
    take: int
    start: int
    """Story-clock frame of its first frame."""
    text: str
    """As the person wrote it."""
    caption: str
    """As the text encoder saw it."""
    num_chunks: int
    context: tuple[RememberedFrame, ...] = ()
    """The frames it remembers; a short memory repeats them."""
    aired_before: int | None = None
    """How many frames of the shot before it counted as seen, and could be remembered; none: there was none."""
    thumbnail: str = ""
    """A small JPEG of its first frame in base64, or empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkReady:
    """A chunk is on its way to the screen. Its media message has the same sequence number."""

    kind: ClassVar[str] = "chunk"
    node: int
    shot: int
    chunk: int
    take: int
    sequence: int
    """Counts the story's chunks; `ack` names it."""
    epoch: int
    """Counts the breaks on the story clock. Inside an epoch frames follow one another without overlap."""
    start: int
    """Story-clock frame of its first frame. In a new epoch, frames sent before for this time or later are void."""
    num_frames: int
    caption: str
    """In force, exactly as the text encoder saw it."""
    applied: tuple[str, ...] = ()
    """Ids of the commands that took effect in it."""
    num_chunks: int
    """Length of its shot, as far as is known."""
    compute_ms: float
    latency_ms: float | None = None
    """For the first chunk after an instruction: from its acceptance until the chunk was ready."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryChanged:
    """What a cut now would remember."""

    kind: ClassVar[str] = "memory"
    frames: tuple[RememberedFrame, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Performance:
    """A story file that is played live: its shots follow one another until it ends or a director interrupts it."""

    title: str
    state: Literal["playing", "finished", "interrupted"]
    opened: int
    """How many of its shots have begun."""
    num_shots: int
    following: str = ""
    """Caption of the shot that comes next; empty in the last one."""
    reason: str = ""
    """Why it was interrupted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PerformanceChanged:
    """A story file began to be played, went on to its next shot, or is played no more."""

    kind: ClassVar[str] = "performance"
    performance: Performance


State = Literal["idle", "loading", "warming", "queued", "live", "late", "holding", "paused", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """How the story is doing."""

    kind: ClassVar[str] = "status"
    state: State
    """idle: ready, waiting for `start`; holding: the shot has run its length and waits for direction;
    late: chunks come too late, the clock waits for them."""
    detail: str = ""
    late_ms: float = 0.0
    """By how much the newest chunk came too late, or the next one is overdue; said anew every half a second of it."""
    queue_position: int | None = None
    """For `queued`: 1 is next."""
    clock_frame: float = 0.0
    """The story clock when this was said."""
    clock_running: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ShotCard:
    """One shot of the story so far."""

    node: int
    shot: int
    take: int
    start: int
    text: str
    caption: str
    num_chunks: int
    made_chunks: int
    context: tuple[RememberedFrame, ...] = ()
    steers: tuple[SteerMark, ...] = ()
    thumbnail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SteerMark:
    """A steer that took effect."""

    id: str
    chunk: int
    first_frame: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Take:
    """A node of the story's tree: one take of one shot."""

    node: int
    parent: int | None
    """The take it follows; none: it begins a story."""
    parent_frames: int | None = None
    """How many frames of the parent are part of the story that leads here."""
    origin: int | None = None
    """The take whose first chunks it shares: it was left there and goes on differently."""
    shot: int
    take: int
    text: str
    """As the person wrote it."""
    caption: str
    """Of its first chunk."""
    num_chunks: int
    made_chunks: int
    hidden: bool = False
    live: bool = False
    """Whether it is on the way from the story's beginning to its newest shot."""
    thumbnail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeChanged:
    """The story went back to a branch of its tree, or takes were hidden or shown."""

    kind: ClassVar[str] = "tree"
    head: int | None
    """The take in which the story goes on; none: at its beginning."""
    takes: tuple[Take, ...] = ()
    """Those that are new or changed, but for `live`."""
    shots: tuple[ShotCard, ...] | None = None
    """The shots that lead to `head`, itself included, if they are others than before."""
    opening: bool = False
    """A `shot_opened` follows, after `head`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """A command that has not ended yet."""

    id: str
    command: str
    text: str = ""
    at: At | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StorySnapshot:
    """Everything needed to draw the story now."""

    status: Status
    global_caption: str = ""
    seed: int = 0
    epoch: int = 0
    shots: tuple[ShotCard, ...] = ()
    """The newest ones of the live path, oldest first."""
    head: int | None = None
    """The take in which the story goes on."""
    takes: tuple[Take, ...] = ()
    """The whole tree, in the order in which it was made."""
    pending: tuple[Pending, ...] = ()
    memory: tuple[RememberedFrame, ...] = ()
    left_out: tuple[str, ...] = ()
    """Parts of the running shot's captions that do not fit into the text encoder. After a restart or a going back it is
    empty until the next chunk."""
    performance: Performance | None = None
    """The story file that is being played."""


Event = Accepted | Ended | ShotOpened | ChunkReady | TreeChanged | MemoryChanged | PerformanceChanged | Status
