"""A stream: instructions in, chunks of video out.

`Engine` holds what streams share and never changes (weights, codec, text encoder); `Stream` holds everything that
belongs to one viewer (caches, memory, decoder state, pending instructions) and is an iterator of `Chunk`.

T pixel frames, H W pixels, C latent channels, h w latent size.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shotstream.engine.memory import FrameId, MemoryFrame, Pages, ShotMemory, ShownFrames
from shotstream.engine.noise import addressed_noise
from shotstream.engine.rollout import ChunkAbandoned, Context, Rollout, RolloutConfig
from shotstream.engine.teacher import TeacherConfig, TeacherRollout
from shotstream.models.codec import Codec, nothing
from shotstream.models.dit import CaptionKV, DiT
from shotstream.models.shelf import Shelf
from shotstream.models.text import TextEncoder
from shotstream.presets import Preset
from shotstream.story import CHUNKS_PER_SHOT, Shot, Steer, compose_caption

EXTEND_CHUNKS = 3
"""How much longer a finished shot runs when it is steered."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """An instruction that took effect."""

    kind: Literal["cut", "steer"]
    caption: str
    """As the person wrote it."""


@dataclass
class Timings:
    """Milliseconds of one chunk by stage. `context` covers choosing, encoding and caching remembered frames."""

    text: float = 0.0
    context: float = 0.0
    commit: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        return self.text + self.context + self.commit + self.denoise + self.decode

    @contextmanager
    def measure(self, stage: Literal["text", "context", "commit", "denoise", "decode"]) -> Iterator[None]:
        start = _now_ms()
        yield
        setattr(self, stage, getattr(self, stage) + _now_ms() - start)


def _now_ms() -> float:
    if torch.cuda.is_available():  # work is queued there: without this its time would show up in a later stage
        torch.cuda.synchronize()
    return time.perf_counter() * 1000


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Three latent frames' worth of finished video."""

    frames: npt.NDArray[np.uint8]
    """[T, H, W, 3] RGB; T is 9 for the first chunk of a shot, 12 afterwards. The stream has a copy: draw on them."""
    shot: int
    index: int
    """Of the chunk within its shot."""
    take: int
    latent: Tensor
    """[1, 3, C, h, w] float32."""
    caption: str
    """In force, exactly as the text encoder saw it."""
    applied: tuple[Applied, ...]
    """Cuts and steers that took effect in this chunk, those known beforehand included. A `rewrite` is not named."""
    context: tuple[MemoryFrame, ...]
    """The frames this chunk's shot remembers."""
    timings: Timings


@dataclass(frozen=True, kw_only=True)
class KeptChunk:
    """A finished chunk, as far as going on after it needs it."""

    latent: Tensor
    """[1, 3, C, h, w] float32."""
    caption: str
    """In force, exactly as the text encoder saw it."""


@dataclass(frozen=True, kw_only=True)
class KeptShot:
    """A shot to be taken up again after its last chunk."""

    index: int
    take: int
    caption: str
    steers: tuple[str, ...]
    """In force at its last chunk."""
    num_chunks: int
    context: tuple[MemoryFrame, ...]
    """The frames it remembers."""
    chunks: Sequence[KeptChunk]
    """At least one."""


class Engine:
    """One loaded model. Streams share it; nothing in it changes while they run, apart from a cache of captions."""

    def __init__(self, preset: Preset, model: DiT, codec: Codec, text: TextEncoder) -> None:
        self.preset, self.model, self.codec, self.text = preset, model, codec, text
        # A GPU makes those of a caption in less than a millisecond, where Wan's take 94 MB.
        self._captions = Shelf(24 if model.device.type == "cpu" else 8)
        self._directions = Shelf(256)

    def stream(self, *, seed: int = 0, global_caption: str = "", first_shot: int = 0) -> Stream:
        """A new story. The same seed and instructions give the same frames.

        Args: first_shot is the number of its first shot, for a story whose earlier shots were made elsewhere; give them
        to `stream.memory.add_shot` in order.
        """
        return Stream(self, seed=seed, global_caption=global_caption, first_shot=first_shot)

    def check_caption(self, caption: str) -> None:
        """Raises ValueError if the composed caption is longer than the text encoder reads."""
        tokens, limit = self.text.count_tokens(caption), self.preset.dit.text_len
        if tokens > limit:
            raise ValueError(
                f"the caption has {tokens} tokens, at most {limit} are read: shorten it ({caption[:60]}...)"
            )

    @torch.no_grad()
    def caption_kv(self, caption: str) -> CaptionKV:
        """Cross-attention keys and values of one composed caption (rows 1), computed once per caption."""
        rows = self._captions.of(caption, lambda: self._encode(caption))
        layers = len(rows) // 2
        return CaptionKV(rows[:layers], rows[layers:])

    def _encode(self, caption: str) -> tuple[Tensor, ...]:
        captions = self.model.encode_captions(self.text.encode([caption]))
        return (*captions.keys, *captions.values)

    @torch.no_grad()
    def unconditional_kv(self) -> CaptionKV:
        """What guidance steers away from: the preset's negative prompt, or zero states where it has none."""
        if self.preset.negative_prompt:
            return self.caption_kv(self.preset.negative_prompt)
        return self.model.encode_captions(torch.zeros(1, self.preset.dit.text_len, self.preset.dit.text_dim))

    def similarity(self, caption: str, others: Sequence[str]) -> list[float]:
        """Cosine similarity of mean token states, for choosing memories."""
        wanted = self._direction(caption)
        return [float(self._direction(other) @ wanted) for other in others]

    def _direction(self, caption: str) -> Tensor:
        """[D], of length one. Kept for longer than the states it sums, which take sixty times the room."""
        return self._directions.of(caption, lambda: self._directed(caption))[0][0]

    def _directed(self, caption: str) -> tuple[Tensor]:
        return (torch.nn.functional.normalize(self.text.encode([caption])[0].sum(0), dim=-1)[None],)


class PictureLatents:
    """Latents of the pictures encoded last, found by content: most of what a cut remembers, another remembered too."""

    def __init__(self, encode: Callable[[Tensor], Tensor], capacity: int = 96) -> None:
        """Args: encode is a codec's `encode_frames`."""
        self._encode, self._shelf = encode, Shelf(capacity)

    def of(self, pixels_HWC: npt.NDArray[np.uint8]) -> Tensor:
        """[1, 1, C, h, w] of uint8 [H, W, 3]. A picture is encoded alone: its bits do not depend on what else is."""
        key = hashlib.blake2b(pixels_HWC.tobytes(), digest_size=16).digest()
        return self._shelf.of(key, lambda: (self._encode(torch.tensor(pixels_HWC)[None, None]),))[0]


class ShotMaker(Protocol):
    """What a stream needs of whatever makes its shots."""

    @property
    def chunk_index(self) -> int: ...

    def open_shot(self, context: Context) -> None: ...

    def take_back(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class _PendingCut:
    shot: Shot
    take: int
    aired_frames: int | None


@dataclass
class _RunningShot:
    index: int
    take: int
    shot: Shot
    """As long as it will be, with every steer that was given so far."""
    context: tuple[MemoryFrame, ...] = ()
    shown: ShownFrames = field(default_factory=ShownFrames)


class Stream:
    """A story being made. Iterate to get chunks; iteration pauses (StopIteration) where the shot has run its length.

    ```python
    stream = shotstream.load("storyworld").stream(seed=7)
    stream.cut("a fox walks along the beach at sunset")
    for chunk in stream:
        show(chunk.frames)
    stream.steer("now make him look surprised")
    for chunk in stream:
        show(chunk.frames)
    ```
    """

    def __init__(self, engine: Engine, *, seed: int, global_caption: str = "", first_shot: int = 0) -> None:
        self.engine, self.seed, self.global_caption = engine, seed, global_caption
        preset = engine.preset
        similarity = engine.similarity if preset.memory_rule == "matching" else None
        size = preset.height, preset.width
        self.memory = ShotMemory(preset.slab.context_frames, similarity=similarity, picture_size=size)
        self._opening_pages, self._chunk_pages = Pages(2), Pages(preset.slab.window_chunks + 1)
        self._caption_in_force = ""
        self._kv_in_force = CaptionKV((), ())
        self._maker = self._new_maker()
        self._latents = PictureLatents(lambda frames: engine.codec.encode_frames(frames))
        self._running: _RunningShot | None = None
        self._cut: _PendingCut | None = None
        self._pending_steers: list[str] = []
        self._directed = threading.Lock()
        """Held where a cut or steers become pending, or those that were are taken."""
        self._next_index = self._first_index = first_shot
        self.keep_going: Callable[[], bool] = lambda: True
        """Asked before every denoise pass of the student and while its chunks are decoded, by the thread that iterates.
        Where it says no, that thread gets `ChunkAbandoned`; iterate on, and the chunk is made again, with all that was
        to take effect in it. Where a cut came meanwhile it is not asked: the cut's shot is opened."""
        self.opening: Callable[[tuple[MemoryFrame, ...]], None] = lambda context: None
        """Told what a new shot remembers, before anything of the shot is computed."""

    def cut(
        self,
        caption: str,
        *,
        num_chunks: int = CHUNKS_PER_SHOT,
        steers: Sequence[Steer] = (),
        take: int = 0,
        aired_frames: int | None = None,
    ) -> None:
        """End the running shot and open the next one. Pending steers are dropped.

        Called from another thread while a chunk is being made, it ends that chunk at its next denoise pass or level of
        the decoder: a chunk that nobody will see is not finished. (The teacher, which makes whole shots, finishes it.)

        Args: steers known beforehand; take: number of the rendering, another one draws other noise; aired_frames: how
            many frames of the running shot were seen, only those can be remembered, None is all that were made. A shot
            of which nothing was seen never was: the next one gets its number.
        Raises: ValueError, before anything changes, if a caption is empty, what is in force at some chunk is too long,
            or a steer comes after the shot's end.
        """
        shot = Shot(caption=caption, steers=tuple(steers), num_chunks=num_chunks)
        self._check(shot, self._next_index)
        with self._directed:
            self._pending_steers = []
            self._cut = _PendingCut(shot=shot, take=take, aired_frames=aired_frames)

    def steer(self, caption: str) -> None:
        """Change the shot from its next chunk on; after a cut, the shot that it opens. A shot that has run its length
        goes on for a little.

        Raises: ValueError, before anything changes, if there is no shot, the caption is empty, or what is in force then
            or after a later planned steer gets too long.
        """
        with self._directed:
            cut, running = self._cut, self._running
            if cut is not None:
                shot, index, chunk = cut.shot, self._next_index, 0
            elif running is not None:
                shot, index, chunk = running.shot, running.index, self.chunk_index
            else:
                raise ValueError("there is no shot to steer yet: cut to one first")
            self._check(_steered(shot, chunk, [*self._pending_steers, caption]), index, first=chunk)
            self._pending_steers.append(caption)

    def rewrite(self, caption: str, steers: Sequence[str] = ()) -> None:
        """Describe the running shot anew, from its next chunk on: the shot's caption and the steers in force.

        Raises: ValueError, before anything changes, if there is no shot or the caption gets empty or too long.
        """
        if self._running is None:
            raise ValueError("there is no shot to rewrite yet: cut to one first")
        shot = replace(self._running.shot, caption=caption, steers=_from_the_start(steers))
        self._check(_steered(shot, self.chunk_index, self._pending_steers), self._running.index, first=self.chunk_index)
        self._running.shot = shot

    def reopen(self, kept: KeptShot) -> None:
        """Take up a shot where it was left; its next chunks are those that it would have had.

        Caches and decoder are filled from its latents, each with the caption of its own. The memory must hold the shots
        before it, as it did when the shot was opened. Only for a stream that has no shot yet.
        """
        assert self._running is None, "a stream takes up one shot"
        plan = Shot(caption=kept.caption, steers=_from_the_start(kept.steers), num_chunks=kept.num_chunks)
        shot = _RunningShot(kept.index, kept.take, plan, kept.context)
        self._begin_shot(shot, kept.chunks[0].caption)
        for chunk in kept.chunks:
            self._show(shot, self._replay(shot, chunk), chunk.caption)
        self._running, self._next_index = shot, shot.index + 1

    def pin(self, id: FrameId) -> None:
        """Remember a frame at every following cut; it may be of the running shot.

        Raises ValueError if it is gone, or as many frames are pinned as can be remembered.
        """
        running = self._running
        if running is not None and id[0] == self.memory.num_shots and 0 <= id[1] < running.shown.num_frames:
            self.memory.check_place(id)
            pixels, caption = running.shown.at(id[1])
            # A copy: a view would keep the page of its whole chunk.
            self.memory.pin_frame(MemoryFrame(id=id, pixels=pixels.copy(), caption=caption, reason="pinned"))
        else:
            self.memory.pin(id)

    def forget(self, id: FrameId) -> None:
        """Leave a frame out of every following cut; it may be of the running shot. Raises ValueError if it is gone."""
        running = self._running
        if running is not None and id[0] == self.memory.num_shots and 0 <= id[1] < running.shown.num_frames:
            self.memory.forget_frame(id)
        else:
            self.memory.remove(id)

    def preview_memory(self, *, aired_frames: int | None = None) -> tuple[MemoryFrame, ...]:
        """What a cut to something like the running shot would remember now. `aired_frames` as for `cut`."""
        memory, running = self.memory.copy(), self._running
        if running is None:
            return memory.choose("")
        memory.add_shown(running.shown.first(aired_frames))
        return memory.choose(self._compose(running.shot, max(0, self.chunk_index - 1), running.index))

    def encode_ahead(self) -> None:
        """Encode the running shot's first frame, which a cut is likely to remember, while there is time.

        Nothing else changes: the next cut has its latents at hand, the same that it would have made.
        """
        if self._running is not None and self._running.shown.num_frames:
            self._latents.of(self._running.shown.at(0)[0])

    def extend(self, num_chunks: int = EXTEND_CHUNKS) -> None:
        """Let the running shot run longer. Raises ValueError if there is none."""
        if self._running is None or num_chunks < 1:
            raise ValueError(
                f"extend needs a running shot and at least one chunk, got {num_chunks}: cut to a shot first"
            )
        shot = self._running.shot
        self._running.shot = replace(shot, num_chunks=shot.num_chunks + num_chunks)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        while True:
            try:
                return self._advance(Timings())
            except ChunkAbandoned:
                if self._cut is None:  # otherwise a cut came in meanwhile: open its shot
                    raise

    def _advance(self, timings: Timings) -> Chunk:
        self._open_next(timings)
        running = self._running
        if running is None:
            raise StopIteration
        with self._directed:
            pending, self._pending_steers = self._pending_steers, []
        running.shot = _steered(running.shot, self.chunk_index, pending)
        if self.chunk_index >= running.shot.num_chunks:
            raise StopIteration
        return self._make_chunk(running, self._applied(running.shot), timings)

    @property
    def chunk_index(self) -> int:
        """Index, within the running shot, of the next chunk."""
        return self._maker.chunk_index

    def _new_maker(self) -> ShotMaker:
        preset = self.engine.preset
        config = RolloutConfig(timesteps=preset.student_timesteps, slab=preset.slab)
        self._rollout = Rollout(
            self.engine.model, config, latent_height=preset.latent_height, latent_width=preset.latent_width
        )
        return self._rollout

    def _denoise(self, shot: _RunningShot, caption: str, timings: Timings) -> Tensor:
        with timings.measure("text"):
            captions = self._captions(caption)
        with timings.measure("commit"):
            self._rollout.commit()
        with timings.measure("denoise"):
            noise, keep = self._noise(shot, self.chunk_index), self._keep_frames(shot, caption)
            return self._rollout.next_chunk(captions, noise, keep_frames=keep, keep_going=self._wanted).clean

    def _keep_frames(self, shot: _RunningShot, caption: str) -> int | None:
        """Where another caption comes into force within a shot, how many frames of it still count; None: as before."""
        steered = shot.shown.num_frames and caption != shot.shown.last_caption
        return self.engine.preset.frames_after_steer if steered else None

    def _wanted(self) -> bool:
        """Whether somebody still waits for the chunk that is being made."""
        return self._cut is None and self.keep_going()

    def _open_next(self, timings: Timings) -> bool:
        """Open the shot of a pending cut. Returns whether there was one."""
        cut = self._cut
        if cut is None:
            return False
        self._remember_running(cut.aired_frames)
        with self._directed:
            pending = self._pending_steers if self._cut is cut else []
            steers = tuple(pending)
        shot = _RunningShot(self._next_index, cut.take, _steered(cut.shot, 0, steers))
        caption = self._compose(shot.shot, 0, shot.index)
        with timings.measure("text"):
            self._captions(caption)
        with timings.measure("context"):
            shot.context = self.memory.choose(caption)
            self.opening(shot.context)
            self._begin_shot(shot, caption)
        # Only now: had choosing or encoding failed, the cut would still be pending. A newer cut stays pending.
        with self._directed:
            self._running, self._next_index = shot, shot.index + 1
            del pending[: len(steers)]
            if self._cut is cut:
                self._cut = None
        return True

    def _begin_shot(self, shot: _RunningShot, caption: str) -> None:
        """Fill the global cache with what the shot remembers; its caption when it is opened is `caption`."""
        self._maker.open_shot(self._context(shot, caption))
        self._decoder = self.engine.codec.new_decoder_state(1)

    def _replay(self, shot: _RunningShot, chunk: KeptChunk) -> npt.NDArray[np.uint8]:
        """Commit a finished chunk; returns its frames."""
        latent, keep = chunk.latent.to(self.engine.model.device), self._keep_frames(shot, chunk.caption)
        self._rollout.restore_chunk(latent, self._captions(chunk.caption), keep_frames=keep)
        return self._decode(latent)

    def _captions(self, caption: str) -> CaptionKV:
        """Keys and values of the caption in force: the same tensors as long as it is."""
        if caption != self._caption_in_force:
            self._caption_in_force, self._kv_in_force = caption, self.engine.caption_kv(caption)
        return self._kv_in_force

    def _decode_if_wanted(self, latent: Tensor) -> npt.NDArray[np.uint8]:
        """The frames of the chunk that was just denoised. Whatever is raised, the chunk then never was."""

        def check() -> None:
            if not self._wanted():
                raise ChunkAbandoned(f"chunk {self.chunk_index - 1} was abandoned while it was decoded")

        try:
            return self._decode(latent, check)
        except BaseException:  # an interrupt from the keyboard, too: it is made when the stream is asked again
            self._maker.take_back()
            raise

    def _decode(self, latent: Tensor, between: Callable[[], None] = nothing) -> npt.NDArray[np.uint8]:
        """The frames of a shot's next chunk, uint8 [T, H, W, 3]."""
        decoded = self.engine.codec.decode_chunk(latent, self._decoder, between=between)
        frames: npt.NDArray[np.uint8] = decoded[0].cpu().numpy()
        return frames

    def _show(self, shot: _RunningShot, frames: npt.NDArray[np.uint8], caption: str) -> None:
        """Keep a copy of a finished chunk's frames, for what will be remembered of them."""
        pages = self._chunk_pages if shot.shown.num_frames else self._opening_pages
        shot.shown.add(pages.copy(frames), caption)

    def _remember_running(self, aired_frames: int | None) -> None:
        if self._running is not None:
            shown = self._running.shown.first(aired_frames)
            self.memory.add_shown(shown)
            if not shown.num_frames:
                self._next_index = self._running.index
        self._running = None

    def _applied(self, shot: Shot) -> tuple[Applied, ...]:
        """What takes effect in the next chunk, however often it is begun."""
        chunk = self.chunk_index
        cut = [Applied(kind="cut", caption=shot.caption)] if chunk == 0 else []
        return (*cut, *(Applied(kind="steer", caption=one.caption) for one in shot.steers if one.chunk == chunk))

    def _make_chunk(self, shot: _RunningShot, applied: tuple[Applied, ...], timings: Timings) -> Chunk:
        index = self.chunk_index
        caption = self._compose(shot.shot, index, shot.index)
        latent = self._denoise(shot, caption, timings)
        with timings.measure("decode"):
            frames = self._decode_if_wanted(latent)
        self._show(shot, frames, caption)
        return Chunk(
            frames=frames,
            shot=shot.index,
            index=index,
            take=shot.take,
            latent=latent.clone(),  # its keys are still to be written
            caption=caption,
            applied=applied,
            context=shot.context,
            timings=timings,
        )

    def _context(self, shot: _RunningShot, caption: str) -> Context:
        """Encode the chosen frames. Too few are repeated; none is a story's beginning."""
        chosen, device = shot.context, self.engine.model.device
        if not chosen:
            return self._empty_context(caption)
        filled = self._filled(chosen)
        encoded = {frame.id: self._latents.of(frame.pixels) for frame in chosen}
        latents = torch.cat([encoded[frame.id] for frame in filled], dim=1)
        ids = torch.tensor([[float(self._shot_id(frame, shot)) for frame in filled]], device=device)
        own = torch.tensor([float(max(1, shot.index))], device=device)
        captions = CaptionKV.stack([self.engine.caption_kv(frame.caption) for frame in filled])
        return Context(latents.float().to(device), ids, own, captions)

    def _filled(self, chosen: tuple[MemoryFrame, ...]) -> list[MemoryFrame]:
        """Exactly as many frames as the global cache holds, or none."""
        capacity = self.memory.capacity if chosen else 0
        return [chosen[i * len(chosen) // capacity] for i in range(capacity)]

    def _empty_context(self, caption: str) -> Context:
        preset, device = self.engine.preset, self.engine.model.device
        frames = preset.slab.context_frames
        latents = torch.zeros(
            1, frames, preset.dit.in_channels, preset.latent_height, preset.latent_width, device=device
        )
        ids = torch.zeros(1, frames, device=device)
        return Context(latents, ids, ids[:, 0] + 1, self.engine.caption_kv(caption))

    def _shot_id(self, frame: MemoryFrame, shot: _RunningShot) -> int:
        """The indicator of a remembered frame. Distances beyond what training saw are held at its longest."""
        oldest = shot.index - self.memory.num_shots  # the memory holds the shots just before this one
        earlier = oldest + max(0, frame.id[0])
        return max(earlier, shot.index - self.engine.preset.max_shot_distance)

    def _noise(self, shot: _RunningShot, chunk: int) -> Callable[[int], Tensor]:
        preset = self.engine.preset
        shape = (1, preset.slab.chunk_frames, preset.dit.in_channels, preset.latent_height, preset.latent_width)
        return lambda step: addressed_noise(
            seed=self.seed, shot=shot.index, take=shot.take, chunk=chunk, step=step, shape=shape
        )

    def _compose(self, shot: Shot, chunk: int, index: int) -> str:
        """What the text encoder sees at a chunk of the story's shot `index`."""
        caption, steers = shot.in_force(chunk)
        return compose_caption(
            self.global_caption, caption, steers, style=self.engine.preset.caption_style, shot_index=index
        )

    def _check(self, shot: Shot, index: int, first: int = 0) -> None:
        """Raise ValueError if anything in force from chunk `first` on is too long."""
        for chunk in [first, *(change for change in shot.changes if change > first)]:
            self.engine.check_caption(self._compose(shot, chunk, index))


def _from_the_start(captions: Sequence[str]) -> tuple[Steer, ...]:
    return tuple(Steer(chunk=0, caption=caption) for caption in captions)


def _steered(shot: Shot, chunk: int, captions: Sequence[str]) -> Shot:
    """The shot with more steers from a chunk on. One that has run its length goes on for a little."""
    if not captions:
        return shot
    length = shot.num_chunks if chunk < shot.num_chunks else chunk + EXTEND_CHUNKS
    steers = [Steer(chunk=chunk, caption=caption) for caption in captions]
    return replace(shot, steers=(*shot.steers, *steers), num_chunks=length)


class TeacherEngine(Engine):
    """The bidirectional teacher behind the same interface, for comparison. Not live: a shot is made whole."""

    def __init__(
        self, preset: Preset, model: DiT, codec: Codec, text: TextEncoder, *, num_steps: int | None = None
    ) -> None:
        super().__init__(preset, model, codec, text)
        self.num_steps = num_steps or preset.teacher_steps

    def stream(self, *, seed: int = 0, global_caption: str = "", first_shot: int = 0) -> TeacherStream:
        return TeacherStream(self, seed=seed, global_caption=global_caption, first_shot=first_shot)


class TeacherStream(Stream):
    """A story made by the teacher. Steers and length of a shot must be known at the cut: `steer`, `rewrite`, `extend`
    and `reopen` raise ValueError."""

    engine: TeacherEngine

    def steer(self, caption: str) -> None:
        raise ValueError("the teacher makes a shot as a whole: give its steers with the cut, or use the student")

    def rewrite(self, caption: str, steers: Sequence[str] = ()) -> None:
        raise ValueError("the teacher makes a shot as a whole: give all its captions with the cut, or use the student")

    def extend(self, num_chunks: int = EXTEND_CHUNKS) -> None:
        raise ValueError("the teacher makes a shot as a whole: give its length with the cut, or use the student")

    def reopen(self, kept: KeptShot) -> None:
        raise ValueError("the teacher makes a shot as a whole: it cannot go on with one, use the student")

    def _new_maker(self) -> ShotMaker:
        preset = self.engine.preset
        config = TeacherConfig(
            sigmas=tuple(preset.schedule.sampling_sigmas(self.engine.num_steps).tolist()),
            guidance_scale=preset.guidance_scale,
            context_time=preset.teacher_context_time,
            slab=preset.slab,
        )
        self._teacher = TeacherRollout(self.engine.model, config, self.engine.unconditional_kv())
        return self._teacher

    def _denoise(self, shot: _RunningShot, caption: str, timings: Timings) -> Tensor:
        with timings.measure("denoise"):
            if self.chunk_index == 0:
                noise = torch.cat([self._noise(shot, chunk)(0) for chunk in range(shot.shot.num_chunks)], dim=1)
                self._teacher.begin(noise, self._all_captions(shot))
            return self._teacher.next_chunk().clean

    def _wanted(self) -> bool:
        return True  # the shot is made already

    def _all_captions(self, shot: _RunningShot) -> CaptionKV:
        """One row per context frame, then one per frame of the shot."""
        slab = self.engine.preset.slab
        opening = self._compose(shot.shot, 0, shot.index)
        remembered = [frame.caption for frame in self._filled(shot.context)] or [opening] * slab.context_frames
        own = [
            self._compose(shot.shot, chunk, shot.index)
            for chunk in range(shot.shot.num_chunks)
            for _ in range(slab.chunk_frames)
        ]
        return CaptionKV.stack([self.engine.caption_kv(caption) for caption in [*remembered, *own]])
