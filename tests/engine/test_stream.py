"""What a stream promises to whoever directs it."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from shotstream.engine.noise import addressed_noise
from shotstream.engine.rollout import ChunkAbandoned
from shotstream.engine.stream import Chunk, Engine, KeptChunk, KeptShot, Stream, TeacherEngine
from shotstream.story import Steer


def frames(chunks: Iterable[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def told(stream: Stream) -> list[Chunk]:
    """A story of three shots with a steer."""
    stream.cut("a fox on the beach", num_chunks=2)
    chunks = list(stream)
    stream.cut("he runs", num_chunks=3)
    chunks += list(islice(stream, 1))
    stream.steer("he looks surprised")
    chunks += list(stream)
    stream.cut("a wide shot of the city", num_chunks=1)
    return chunks + list(stream)


def test_chunks_have_nine_then_twelve_frames_of_the_presets_size(tiny_engine: Engine) -> None:
    chunks = told(tiny_engine.stream())
    height, width = tiny_engine.preset.height, tiny_engine.preset.width
    for chunk in chunks:
        assert chunk.frames.shape == (9 if chunk.index == 0 else 12, height, width, 3)
        assert chunk.frames.dtype == np.uint8
    assert [(chunk.shot, chunk.index) for chunk in chunks] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_the_same_seed_and_instructions_give_the_same_bits(tiny_engine: Engine) -> None:
    first, again, other = (told(tiny_engine.stream(seed=seed)) for seed in (7, 7, 8))
    assert np.array_equal(frames(first), frames(again))
    assert not np.array_equal(frames(first), frames(other))


def test_streams_of_one_engine_do_not_touch_each_other(tiny_engine: Engine) -> None:
    one, other = tiny_engine.stream(seed=1), tiny_engine.stream(seed=2)
    one.cut("a fox on the beach", num_chunks=3)
    other.cut("a bear in the city", num_chunks=3)
    mixed = [chunk for pair in zip(one, other, strict=True) for chunk in pair][::2]
    alone = tiny_engine.stream(seed=1)
    alone.cut("a fox on the beach", num_chunks=3)
    assert np.array_equal(frames(mixed), frames(alone))


@pytest.mark.parametrize(("rule", "expected"), [("matching", [(1, 8), (4, 8)]), ("published", [(3, 0), (4, 0)])])
def test_the_preset_says_which_of_many_shots_are_remembered(
    tiny_engine: Engine, rule: str, expected: list[tuple[int, int]]
) -> None:
    engine = copy.copy(tiny_engine)
    engine.preset = replace(tiny_engine.preset, memory_rule=rule)
    stream = engine.stream()
    for caption in ("a fox", "a fox", "the city", "the sea", "a bear", "a fox"):
        stream.cut(caption, num_chunks=1)
        chunks = list(stream)
    assert [frame.id for frame in chunks[0].context] == expected


def test_instructions_take_effect_at_the_next_chunk_and_come_back(tiny_engine: Engine) -> None:
    chunks = told(tiny_engine.stream())
    applied = {(c.shot, c.index): [(a.kind, a.caption) for a in c.applied] for c in chunks if c.applied}
    assert applied == {
        (0, 0): [("cut", "a fox on the beach")],
        (1, 0): [("cut", "he runs")],
        (1, 1): [("steer", "he looks surprised")],
        (2, 0): [("cut", "a wide shot of the city")],
    }
    assert "surprised" not in chunks[2].caption
    assert all("surprised" in chunk.caption for chunk in chunks[3:5])


def test_a_steer_changes_nothing_before_its_chunk(tiny_engine: Engine) -> None:
    def run(steered: bool) -> list[Chunk]:
        stream = tiny_engine.stream(seed=3)
        stream.cut("a fox on the beach", num_chunks=4)
        start = list(islice(stream, 2))
        if steered:
            stream.steer("he looks surprised")
        return start + list(stream)

    steered, plain = run(True), run(False)
    assert np.array_equal(frames(steered[:2]), frames(plain[:2]))
    assert not torch.equal(steered[2].latent, plain[2].latent)


@pytest.mark.parametrize("keep", [None, 1, 3])
def test_a_steered_shot_lets_go_of_what_it_showed_and_one_left_alone_of_nothing(
    tiny_engine: Engine, keep: int | None
) -> None:
    engine = copy.copy(tiny_engine)
    engine.preset = replace(engine.preset, frames_after_steer=keep)
    stream, read = engine.stream(seed=1), list[int]()
    for caption in ("a fox", "a bear"):
        stream.cut(caption, num_chunks=3)
        for chunk in range(3):
            if (caption, chunk) == ("a fox", 2):
                stream.steer("he runs")
            next(stream)
            slots = stream._rollout.config.slab.readable(chunk, stream._rollout._since)
            read.append(sum(part.stop - part.start for part in slots) - engine.preset.slab.context_frames)
    assert read == [3, 6, 9 if keep is None else 3 + keep, 3, 6, 9], "frames of the shot that each chunk read"


@pytest.mark.parametrize("num_kept", [1, 2, 3, 5])
def test_a_steered_shot_taken_up_again_goes_on_as_it_would_have(tiny_engine: Engine, num_kept: int) -> None:
    stream = tiny_engine.stream(seed=1)
    stream.cut("a fox", num_chunks=6, steers=[Steer(chunk=2, caption="he runs")])
    chunks = list(stream)
    kept = KeptShot(
        index=0,
        take=0,
        caption="a fox",
        steers=("he runs",) if num_kept > 2 else (),
        num_chunks=6,
        context=(),
        chunks=[KeptChunk(latent=chunk.latent, caption=chunk.caption) for chunk in chunks[:num_kept]],
    )
    again = tiny_engine.stream(seed=1)
    again.reopen(kept)
    for index in range(num_kept, 6):
        if index == 2:
            again.steer("he runs")
        assert np.array_equal(next(again).frames, chunks[index].frames)


def test_steers_known_beforehand_equal_steers_given_live(tiny_engine: Engine) -> None:
    live = tiny_engine.stream(seed=3)
    live.cut("a fox on the beach", num_chunks=3)
    chunks = list(islice(live, 1))
    live.steer("he looks surprised")
    chunks += list(live)
    planned = tiny_engine.stream(seed=3)
    planned.cut("a fox on the beach", num_chunks=3, steers=[Steer(chunk=1, caption="he looks surprised")])
    assert np.array_equal(frames(chunks), frames(planned))


def test_a_steer_given_before_the_first_chunk_equals_one_given_with_the_cut(tiny_engine: Engine) -> None:
    live, planned = tiny_engine.stream(seed=3), tiny_engine.stream(seed=3)
    live.cut("a fox", num_chunks=3)
    live.steer("it rains")
    planned.cut("a fox", num_chunks=3, steers=[Steer(chunk=0, caption="it rains")])
    chunks = list(live)
    assert np.array_equal(frames(chunks), frames(planned))
    assert [[one.kind for one in chunk.applied] for chunk in chunks] == [["cut", "steer"], [], []]
    again = tiny_engine.stream(seed=3)
    made = [KeptChunk(latent=chunks[0].latent, caption=chunks[0].caption)]
    again.reopen(
        KeptShot(index=0, take=0, caption="a fox", steers=("it rains",), num_chunks=3, context=(), chunks=made)
    )
    assert np.array_equal(frames(again), frames(chunks[1:]))


def test_what_is_done_to_a_chunks_arrays_changes_nothing_of_the_story(tiny_engine: Engine) -> None:
    def film(spoil: bool) -> list[np.ndarray]:
        stream, made = tiny_engine.stream(seed=4), list[np.ndarray]()
        for caption in ("a fox", "the city"):
            stream.cut(caption, num_chunks=2)
            for chunk in stream:
                made.append(chunk.frames.copy())
                if spoil:
                    chunk.frames[...] = 0
                    chunk.latent[...] = 0
        return made

    for spoilt, usual in zip(film(True), film(False), strict=True):
        assert np.array_equal(spoilt, usual)


def test_a_planned_steer_that_replaces_equals_a_shot_described_anew(tiny_engine: Engine) -> None:
    live = tiny_engine.stream(seed=3)
    live.cut("a fox", num_chunks=3, steers=[Steer(chunk=0, caption="it rains")])
    chunks = list(islice(live, 1))
    live.rewrite("a bear", ["he waves"])
    chunks += list(live)
    planned = tiny_engine.stream(seed=3)
    steers = [Steer(chunk=0, caption="it rains"), Steer(chunk=1, caption="a bear", replaces=True)]
    planned.cut("a fox", num_chunks=3, steers=[*steers, Steer(chunk=1, caption="he waves")])
    again = list(planned)
    assert [chunk.caption for chunk in again] == ["a fox. it rains", "a bear. he waves", "a bear. he waves"]
    assert [[one.caption for one in chunk.applied] for chunk in again] == [
        ["a fox", "it rains"],
        ["a bear", "he waves"],
        [],
    ]
    assert np.array_equal(frames(chunks), frames(again))


@pytest.mark.parametrize("long", ["shot", "steer"])
def test_a_cut_is_refused_for_what_is_too_long_at_any_of_its_chunks(tiny_engine: Engine, long: str) -> None:
    shot, steer = ("word " * 70, "he waves") if long == "shot" else ("a fox", "word " * 70)
    steers = [Steer(chunk=1, caption=steer), Steer(chunk=2, caption="a bear", replaces=True)]
    stream = tiny_engine.stream()
    with pytest.raises(ValueError, match="tokens"):
        stream.cut(shot, steers=steers)
    assert list(stream) == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_steer_is_refused_where_it_and_a_planned_one_are_too_long_together(tiny_engine: Engine, begun: bool) -> None:
    stream = tiny_engine.stream()
    stream.cut("a fox", num_chunks=3, steers=[Steer(chunk=2, caption="it rains " * 15)])
    if begun:
        next(stream)
    stream.steer("he waves")
    with pytest.raises(ValueError, match="tokens"):
        stream.steer("word " * 40)
    assert [chunk.index for chunk in stream][-1] == 2


def test_a_steer_before_a_planned_one_that_replaces_may_be_long(tiny_engine: Engine) -> None:
    stream = tiny_engine.stream()
    stream.cut("a fox", num_chunks=2, steers=[Steer(chunk=1, caption="a bear " * 20, replaces=True)])
    stream.steer("word " * 40)
    assert "word" in next(stream).caption
    assert "word" not in next(stream).caption


def test_two_steers_before_one_boundary_merge_in_order_and_a_cut_supersedes_them(tiny_engine: Engine) -> None:
    stream = tiny_engine.stream()
    stream.cut("a fox on the beach")
    next(stream)
    stream.steer("he waves")
    stream.steer("now he dances")
    chunk = next(stream)
    assert chunk.caption.index("he waves") < chunk.caption.index("now he dances")
    stream.steer("he sleeps")
    stream.cut("a bear in the city")
    chunk = next(stream)
    assert [a.kind for a in chunk.applied] == ["cut"]
    assert "sleeps" not in chunk.caption


def test_a_cut_inside_a_shot_remembers_only_frames_that_were_shown(tiny_engine: Engine) -> None:
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox on the beach", num_chunks=7)
    shown = frames(islice(stream, 2))
    stream.cut("he runs", num_chunks=1)
    chunk = next(stream)
    assert [frame.id for frame in chunk.context] == [(0, 0), (0, len(shown) - 1)]
    assert np.array_equal(chunk.context[1].pixels, shown[-1])


def test_what_is_remembered_changes_the_next_shot(tiny_engine: Engine) -> None:
    def last_shot(first: str) -> torch.Tensor:
        stream = tiny_engine.stream(seed=5)
        stream.cut(first, num_chunks=1)
        next(stream)
        stream.cut("he runs", num_chunks=1)
        return next(stream).latent

    assert not torch.equal(last_shot("a fox on the beach"), last_shot("a bear in the city"))


def test_a_finished_shot_pauses_and_goes_on_when_steered_or_extended(tiny_engine: Engine) -> None:
    stream = tiny_engine.stream()
    stream.cut("a fox on the beach", num_chunks=1)
    assert len(list(stream)) == 1
    assert list(stream) == []
    stream.steer("he waves")
    assert [chunk.index for chunk in stream] == [1, 2, 3]
    stream.extend(2)
    assert [chunk.index for chunk in stream] == [4, 5]


def test_a_shot_longer_than_the_window_keeps_its_caches_small(tiny_engine: Engine) -> None:
    stream = tiny_engine.stream()
    size = stream._rollout.slab.keys.shape
    stream.cut("a fox on the beach", num_chunks=9)
    assert len(list(stream)) == 9
    assert stream._rollout.slab.keys.shape == size


@pytest.mark.parametrize("caption", ["", "   ", "word " * 80])
def test_bad_instructions_are_refused_and_lose_nothing(tiny_engine: Engine, caption: str) -> None:
    stream, twin = tiny_engine.stream(), tiny_engine.stream()
    for s in (stream, twin):
        s.cut("a fox on the beach", num_chunks=3)
        next(s)
    for instruct in (stream.cut, stream.steer):
        with pytest.raises(ValueError, match=r"empty|tokens"):
            instruct(caption)
    assert np.array_equal(frames(stream), frames(twin))


def test_steering_before_the_first_cut_is_refused(tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match="cut to one first"):
        tiny_engine.stream().steer("he waves")


def test_another_take_differs_and_its_number_brings_it_back(tiny_engine: Engine) -> None:
    def take(number: int) -> np.ndarray:
        stream = tiny_engine.stream(seed=5)
        stream.cut("a fox on the beach", num_chunks=2, take=number)
        return frames(stream)

    assert np.array_equal(take(1), take(1))
    assert not np.array_equal(take(0), take(1))


def test_the_teacher_streams_through_the_same_interface(tiny_engine: Engine) -> None:
    engine = TeacherEngine(tiny_engine.preset, tiny_engine.model, tiny_engine.codec, tiny_engine.text, num_steps=2)
    stream = engine.stream(seed=1)
    for caption in ("a fox on the beach", "he runs"):
        stream.cut(caption, num_chunks=2, steers=[Steer(chunk=1, caption="he waves")])
        chunks = list(stream)
        assert [chunk.index for chunk in chunks] == [0, 1]
    assert len(chunks[0].context) == engine.preset.slab.context_frames
    for change in (lambda: stream.steer("he waves"), lambda: stream.rewrite("a bear"), lambda: stream.extend(2)):
        with pytest.raises(ValueError, match="with the cut"):
            change()
    assert list(stream) == []


def test_the_teacher_films_a_steer_that_replaces_as_it_would_film_the_shot_that_it_describes(
    tiny_engine: Engine,
) -> None:
    engine = TeacherEngine(tiny_engine.preset, tiny_engine.model, tiny_engine.codec, tiny_engine.text, num_steps=2)
    replaced, plain = engine.stream(seed=1), engine.stream(seed=1)
    replaced.cut("a fox", num_chunks=2, steers=[Steer(chunk=0, caption="a bear", replaces=True)])
    plain.cut("a bear", num_chunks=2)
    assert np.array_equal(frames(replaced), frames(plain))


def test_noise_depends_on_its_address_alone() -> None:
    def draw(**changed: int) -> torch.Tensor:
        address = {"seed": 1, "shot": 2, "take": 0, "chunk": 3, "step": 1} | changed
        return addressed_noise(**address, shape=(2, 3, 64))

    assert torch.equal(draw(), draw())
    draws = [draw(), *(draw(**{name: 9}) for name in ("seed", "shot", "take", "chunk", "step"))]
    for i, one in enumerate(draws):
        assert abs(one.mean()) < 0.2
        assert abs(one.std() - 1) < 0.15
        assert all(not torch.equal(one, other) for other in draws[:i])


def test_a_cut_from_another_thread_ends_the_running_chunk_between_passes(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = tiny_engine.stream(seed=5)
    stream.cut("a fox on the beach")
    next(stream)
    passes: list[int] = []
    original = stream._noise

    def noise(shot: object, chunk: int) -> object:
        draw = original(shot, chunk)

        def at_step(step: int) -> torch.Tensor:
            passes.append(step)
            if len(passes) == 2:
                stream.cut("a bear in the city", num_chunks=1)
            return draw(step)

        return at_step

    monkeypatch.setattr(stream, "_noise", noise)
    chunk = next(stream)
    assert (chunk.shot, chunk.index) == (1, 0)
    assert passes == [0, 1, 0, 1, 2, 3]
    assert [frame.id for frame in chunk.context] == [(0, 0), (0, 8)]


def interrupt_decoding(engine: Engine, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]) -> list[int]:
    """Do something in the middle of the next chunk's decoding; returns how many frames each decoding made."""
    decode_chunk, made = engine.codec.decode_chunk, list[int]()

    def decoded(latents: torch.Tensor, state: object, *, between: Callable[[], None]) -> torch.Tensor:
        calls = iter(range(100))

        def halfway() -> None:
            if next(calls) == 3 and not made:
                made.append(0)
                interrupt()
            between()

        frames = decode_chunk(latents, state, between=halfway)
        made.append(frames.shape[1])
        return frames

    monkeypatch.setattr(engine.codec, "decode_chunk", decoded)
    return made


def test_a_cut_from_another_thread_ends_the_running_chunk_while_it_is_decoded(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, stream = tiny_engine.stream(seed=5), tiny_engine.stream(seed=5)
    for one in (plain, stream):
        one.cut("a fox on the beach")
        next(one)
    plain.cut("a bear in the city", num_chunks=1)
    expected = next(plain)
    made = interrupt_decoding(tiny_engine, monkeypatch, lambda: stream.cut("a bear in the city", num_chunks=1))
    chunk = next(stream)
    assert made == [0, 9]  # the rest of the chunk of twelve was never made
    assert (chunk.shot, chunk.index) == (1, 0)
    assert [frame.id for frame in chunk.context] == [frame.id for frame in expected.context]
    np.testing.assert_array_equal(chunk.frames, expected.frames)


@pytest.mark.parametrize("chunks_before", [0, 1, 4])
def test_a_chunk_abandoned_while_it_is_decoded_is_made_again_as_if_nothing_had_happened(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch, chunks_before: int
) -> None:
    plain, interrupted = tiny_engine.stream(seed=1), tiny_engine.stream(seed=1)
    for stream in (plain, interrupted):
        stream.cut("a fox", num_chunks=6)
        for _ in range(chunks_before):
            next(stream)
    expected = [next(plain).frames, next(plain).frames]

    def give_up() -> None:
        interrupted.keep_going = lambda: False

    interrupt_decoding(tiny_engine, monkeypatch, give_up)
    with pytest.raises(ChunkAbandoned, match=f"chunk {chunks_before} was abandoned while it was decoded"):
        next(interrupted)
    assert interrupted.chunk_index == chunks_before
    interrupted.keep_going = lambda: True
    np.testing.assert_array_equal([*next(interrupted).frames, *next(interrupted).frames], np.concatenate(expected))


def test_an_unwanted_chunk_is_abandoned_and_made_again_as_if_nothing_had_happened(tiny_engine: Engine) -> None:
    plain, interrupted = tiny_engine.stream(seed=1), tiny_engine.stream(seed=1)
    for stream in (plain, interrupted):
        stream.cut("a fox", num_chunks=3)
        next(stream)
    interrupted.keep_going = lambda: False
    with pytest.raises(ChunkAbandoned):
        next(interrupted)
    interrupted.keep_going = lambda: True
    np.testing.assert_array_equal(next(interrupted).frames, next(plain).frames)


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_chunk_whose_decoding_fails_is_made_when_the_stream_is_asked_again(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], teacher: bool
) -> None:
    engine = tiny_engine
    if teacher:
        engine = TeacherEngine(engine.preset, engine.model, engine.codec, engine.text, num_steps=2)
    twin, stream = engine.stream(seed=2), engine.stream(seed=2)
    for one in (twin, stream):
        one.cut("a fox", num_chunks=3)
    wanted, made, decode = list(twin), list[Chunk](), stream._decode
    for index in range(3):

        def fail(*args: object) -> np.ndarray:
            raise error("no")

        monkeypatch.setattr(stream, "_decode", fail)
        with pytest.raises(error):
            next(stream)
        monkeypatch.setattr(stream, "_decode", decode)
        made.append(next(stream))
        assert made[-1].index == index
    assert np.array_equal(frames(made), frames(wanted))
    assert [chunk.applied for chunk in made] == [chunk.applied for chunk in wanted]


def test_a_steer_that_an_abandoned_chunk_had_and_that_was_taken_back_leaves_no_trace(tiny_engine: Engine) -> None:
    engine = copy.copy(tiny_engine)
    engine.preset = replace(engine.preset, frames_after_steer=1)
    stream, twin = engine.stream(seed=1), engine.stream(seed=1)
    for one in (stream, twin):
        one.cut("a fox", num_chunks=5)
    made, usual = list(islice(stream, 2)), list(twin)
    stream.rewrite("a fox", ["he runs"])
    stream.keep_going = iter((True, False)).__next__
    with pytest.raises(ChunkAbandoned):
        next(stream)
    stream.keep_going = lambda: True
    stream.rewrite("a fox")
    assert np.array_equal(frames(made + list(stream)), frames(usual))


def test_what_takes_effect_in_an_abandoned_chunk_takes_effect_once_when_it_is_made_again(tiny_engine: Engine) -> None:
    stream = tiny_engine.stream()
    stream.cut("a fox", num_chunks=2, steers=[Steer(chunk=0, caption="it rains"), Steer(chunk=1, caption="he runs")])
    chunks = []
    for _ in range(2):
        stream.steer(f"he waves {len(chunks)} times")
        for _ in range(2):
            stream.keep_going = lambda: False
            with pytest.raises(ChunkAbandoned):
                next(stream)
        stream.keep_going = lambda: True
        chunks.append(next(stream))
    assert [[(a.kind, a.caption) for a in chunk.applied] for chunk in chunks] == [
        [("cut", "a fox"), ("steer", "it rains"), ("steer", "he waves 0 times")],
        [("steer", "he runs"), ("steer", "he waves 1 times")],
    ]
    assert chunks[1].caption == "a fox. it rains. he waves 0 times. he runs. he waves 1 times"


def test_a_shot_whose_first_chunk_was_abandoned_never_was(tiny_engine: Engine) -> None:
    plain, interrupted = tiny_engine.stream(seed=1), tiny_engine.stream(seed=1)
    for stream in (plain, interrupted):
        stream.cut("a fox", num_chunks=1)
        list(stream)
    interrupted.keep_going = lambda: False
    interrupted.cut("the city")
    with pytest.raises(ChunkAbandoned):
        next(interrupted)
    interrupted.keep_going = lambda: True
    for stream in (plain, interrupted):
        stream.cut("a bear", num_chunks=1)
    first, again = next(plain), next(interrupted)
    assert first.shot == again.shot == 1
    assert np.array_equal(first.frames, again.frames)


def test_encoding_ahead_saves_a_cut_work_and_changes_nothing(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode_frames = tiny_engine.codec.encode_frames
    monkeypatch.setattr(tiny_engine.codec, "encode_frames", lambda frames: encoded.append(1) or encode_frames(frames))
    plain, ahead = tiny_engine.stream(seed=1), tiny_engine.stream(seed=1)
    ahead.encode_ahead()  # nothing runs yet
    made = []
    for stream in (plain, ahead):
        stream.cut("a fox", num_chunks=2)
        next(stream)
        if stream is ahead:
            stream.encode_ahead()
        encoded.clear()
        stream.cut("a bear", num_chunks=1)
        made.append((next(stream).frames, len(encoded)))
    np.testing.assert_array_equal(made[0][0], made[1][0])
    assert made[1][1] == made[0][1] - 1


def test_only_aired_frames_are_remembered_and_a_shot_that_nobody_saw_never_was(tiny_engine: Engine) -> None:
    stream = tiny_engine.stream()
    stream.cut("a fox", num_chunks=3)
    list(stream)
    stream.cut("a bear", aired_frames=5)
    assert max(frame.id[1] for frame in next(stream).context) == 4
    stream.cut("a frog", aired_frames=0)
    chunk = next(stream)
    assert chunk.shot == 1
    assert {frame.id[0] for frame in chunk.context} == {0}


def test_a_remembered_picture_is_encoded_once(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    encode = tiny_engine.codec.encode_frames
    monkeypatch.setattr(tiny_engine.codec, "encode_frames", lambda frames: encoded.append(frames) or encode(frames))
    stream, ids = tiny_engine.stream(), set()
    for caption in (
        "a fox",
        "a bear",
        "a fox runs",
        "the city",
        "a frog",
        "a bear sleeps",
        "a fox",
        "the city",
        "a bear",
    ):
        stream.cut(caption, num_chunks=1)
        ids |= {frame.id for frame in next(stream).context}
    assert len(encoded) == len(ids)


def kept_bytes(stream: Stream) -> int:
    """Of all tensors there are, and of the room for remembered pictures."""
    gc.collect()
    storages = [one.untyped_storage() for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values()) + stream.memory.num_page_bytes


def test_a_long_story_keeps_no_more_than_it_had_reserved_after_its_first_cuts(tiny_engine: Engine) -> None:
    stream, kept = tiny_engine.stream(), list[int]()
    for num_shots in (3, 30):
        while stream.memory.num_shots < num_shots:
            stream.cut(f"a fox meets number {stream.memory.num_shots}", num_chunks=1)
            list(stream)
            stream.preview_memory()
            stream.encode_ahead()
        kept.append(kept_bytes(stream))
    assert kept[1] == kept[0]


def test_a_preview_of_the_memory_is_what_a_cut_would_remember(tiny_engine: Engine) -> None:
    stream = tiny_engine.stream()
    stream.cut("a fox", num_chunks=2)
    list(stream)
    preview = stream.preview_memory(aired_frames=12)
    stream.cut("a fox", aired_frames=12)
    assert [frame.id for frame in preview] == [frame.id for frame in next(stream).context]


def test_rewriting_changes_the_caption_from_the_next_chunk_on(tiny_engine: Engine) -> None:
    stream = tiny_engine.stream()
    with pytest.raises(ValueError, match="no shot"):
        stream.rewrite("a bear")
    stream.cut("a fox", num_chunks=3)
    assert next(stream).caption == "a fox"
    stream.rewrite("a bear", ["it waves"])
    assert next(stream).caption == "a bear. it waves"
    with pytest.raises(ValueError, match="tokens"):
        stream.rewrite("word " * 100)
    assert next(stream).caption == "a bear. it waves"
