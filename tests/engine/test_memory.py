"""Which frames are remembered, and why."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import pytest

from shotstream.engine.memory import Pages, ShotMemory, ShownFrames, allocate_context, evenly_spaced

FRAMES = 81


def memory_of(num_shots: int, **options: object) -> ShotMemory:
    memory = ShotMemory(6, **options)
    for shot in range(num_shots):
        pixels = np.zeros((FRAMES, 2, 2, 3), np.uint8)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = shot, np.arange(FRAMES)
        memory.add_shot(pixels, [f"shot {shot}"] * FRAMES)
    return memory


@pytest.mark.parametrize(
    ("num_shots", "expected"),
    [
        (1, [(0, 0), (0, 16), (0, 32), (0, 48), (0, 64), (0, 80)]),
        (2, [(0, 0), (0, 40), (0, 80), (1, 0), (1, 40), (1, 80)]),
        (3, [(0, 0), (0, 80), (1, 0), (1, 80), (2, 0), (2, 80)]),
        (4, [(0, 0), (1, 0), (2, 0), (2, 80), (3, 0), (3, 80)]),
        (5, [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 80)]),
        (6, [(shot, 0) for shot in range(6)]),
        (8, [(shot, 0) for shot in range(2, 8)]),
    ],
)
def test_the_published_allotment(num_shots: int, expected: list[tuple[int, int]]) -> None:
    chosen = memory_of(num_shots).choose("whatever")
    assert [frame.id for frame in chosen] == expected
    for frame in chosen:
        assert tuple(frame.pixels[0, 0, :2]) == frame.id
        assert frame.caption == f"shot {frame.id[0]}"


def test_spacing_rounds_halves_to_even() -> None:
    assert evenly_spaced(0, 95, 3) == (0, 48, 95)
    assert evenly_spaced(96, 189, 3) == (96, 142, 189)


def test_places_add_up_to_the_capacity() -> None:
    for num_shots in range(1, 20):
        assert sum(allocate_context(num_shots, 6)) == 6


def common_words(caption: str, others: Sequence[str]) -> list[float]:
    words, sets = set(caption.split()), [set(other.split()) for other in others]
    return [len(words & other) / (len(words) * len(other)) ** 0.5 for other in sets]


def test_beyond_the_capacity_the_newest_shot_and_the_best_matches_are_remembered() -> None:
    chosen = memory_of(10, similarity=common_words).choose("0 and 3")
    # Ties go to the newest; of every shot it is the newest frame.
    assert [frame.id for frame in chosen] == [(shot, FRAMES - 1) for shot in (0, 3, 6, 7, 8, 9)]
    assert all(frame.reason == "matches" for frame in chosen)


TEN = ["a fox", "the city", "a bear", "a fox", "the beach", "a cat", "a dog", "the sea", "a hen", "the snow"]


def story_of(captions: Sequence[str], **options: object) -> ShotMemory:
    memory = ShotMemory(6, **options)
    for caption in captions:
        memory.add_shot(np.zeros((FRAMES, 2, 2, 3), np.uint8), [caption] * FRAMES)
    return memory


def test_a_person_of_two_shots_is_remembered_once_as_last_seen() -> None:
    chosen = story_of(TEN, similarity=common_words).choose("a fox")
    assert [frame.id for frame in chosen if frame.caption == "a fox"] == [(3, FRAMES - 1)]
    assert len(chosen) == 6


def test_captions_that_nearly_agree_tell_of_the_same() -> None:
    def similarity(caption: str, others: Sequence[str]) -> list[float]:
        return [
            1.0 if caption.lower() == other.lower() else 0.9 if other.lower() == "a fox" else 0.1 for other in others
        ]

    shots = [{0: "a Fox", 3: "A fox"}.get(index, caption) for index, caption in enumerate(TEN)]
    chosen = story_of(shots, similarity=similarity).choose("where is the fox?")
    assert [frame.id[0] for frame in chosen if frame.caption.lower() == "a fox"] == [3]


def test_where_all_shots_tell_of_the_same_the_newest_are_remembered() -> None:
    chosen = story_of(["a fox"] * 10, similarity=common_words).choose("a fox")
    assert [frame.id for frame in chosen] == [(shot, FRAMES - 1) for shot in range(4, 10)]


def test_a_shot_that_was_steered_is_known_by_what_its_newest_frame_shows() -> None:
    memory = story_of(TEN[:-1], similarity=common_words)
    memory.add_shot(np.zeros((FRAMES, 2, 2, 3), np.uint8), ["the snow"] * 40 + ["a moose"] * 41)
    memory.add_shot(np.zeros((FRAMES, 2, 2, 3), np.uint8), ["the wood"] * FRAMES)
    assert (9, FRAMES - 1) in [frame.id for frame in memory.choose("a moose")]


def test_a_frame_that_was_removed_or_pinned_leaves_its_place_to_the_next_best() -> None:
    memory = story_of(TEN, similarity=common_words)
    memory.remove((3, FRAMES - 1))
    memory.pin((2, FRAMES - 1))
    chosen = memory.choose("a fox")
    assert [frame.id[0] for frame in chosen if frame.caption == "a fox"] == [0]
    assert len(chosen) == len({frame.id for frame in chosen}) == 6


def test_the_published_rule_remembers_the_newest_six_by_their_first_frame() -> None:
    assert [frame.id for frame in story_of(TEN).choose("a fox")] == [(shot, 0) for shot in range(4, 10)]


@pytest.mark.parametrize("similarity", [None, common_words])
def test_a_memory_taken_up_again_chooses_as_the_one_that_was_left(similarity: object) -> None:
    memory, taken_up = story_of([], similarity=similarity), story_of([], similarity=similarity)
    for caption in TEN:
        memory.add_shot(np.zeros((FRAMES, 2, 2, 3), np.uint8), [caption] * FRAMES)
        taken_up.recall(memory.kept(memory.num_shots - 1))
        for asked in ("a fox", "the sea"):
            assert [f.id for f in taken_up.choose(asked)] == [f.id for f in memory.choose(asked)]


def test_pins_removals_and_pictures_act_at_the_next_choice() -> None:
    memory = memory_of(2)
    memory.pin((0, 40))
    memory.remove((1, 40))
    picture = memory.add_picture(np.full((2, 2, 3), 9, np.uint8), "a photo of my dog")
    ids = [frame.id for frame in memory.choose("next")]
    assert ids[0] == picture
    assert (0, 40) in ids
    assert (1, 40) not in ids
    assert len(ids) <= 6
    memory.remove((0, 40))
    assert (0, 40) not in [frame.id for frame in memory.choose("next")]


def test_more_pins_than_places_are_refused_until_one_is_removed() -> None:
    memory, photo = memory_of(2), np.full((2, 2, 3), 9, np.uint8)
    memory.pin((0, 40))
    pictures = [memory.add_picture(photo, "my dog") for _ in range(5)]
    memory.pin((0, 40))
    for once_more in (lambda: memory.add_picture(photo, "my cat"), lambda: memory.pin((1, 40))):
        with pytest.raises(ValueError, match="remove one of them first"):
            once_more()
    memory.remove(pictures[0])
    assert memory.add_picture(photo, "my cat") == (-1, 5)
    assert (-1, 5) in [frame.id for frame in memory.choose("next")]


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 2), (2, 2, 4), (3, 2, 2)])
def test_pictures_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[2, 2, 3\]"):
        memory_of(1, picture_size=(2, 2)).add_picture(np.zeros(shape, np.uint8), "my dog")
    with pytest.raises(ValueError, match="got float64"):
        memory_of(1, picture_size=(2, 2)).add_picture(np.zeros((2, 2, 3)), "my dog")


def test_unknown_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="not in memory"):
        memory_of(1).pin((4, 0))


def test_memory_of_a_long_story_is_flat() -> None:
    sizes = [len(memory_of(num_shots).frames()) for num_shots in (70, 90)]
    assert sizes[0] == sizes[1] <= 70


def test_thinning_keeps_what_every_later_choice_asks_for() -> None:
    memory = memory_of(1)
    for shot in range(1, 8):
        assert [f.id for f in memory.choose("x")] == [f.id for f in memory_of(shot).choose("x")]
        pixels = np.zeros((FRAMES, 2, 2, 3), np.uint8)
        memory.add_shot(pixels, [f"shot {shot}"] * FRAMES)


def test_frames_of_an_endless_shot_are_thinned_but_the_last_is_kept() -> None:
    shown = ShownFrames(limit=16)
    for i in range(200):
        shown.add(np.full((1, 2, 2, 3), i, np.uint8), f"caption {i}")
    assert shown.num_frames == 200
    assert len(shown._frames) <= 16
    assert shown.at(199)[1] == "caption 199"
    assert shown.at(0)[1] == "caption 0"
    assert abs(int(shown.at(100)[0][0, 0, 0]) - 100) <= 16


def test_an_endless_shot_keeps_no_frames_but_those_it_may_be_asked_for() -> None:
    shown, chunks = ShownFrames(limit=32), list[weakref.ref[np.ndarray]]()
    for i in range(64):
        chunk = np.full((4, 2, 2, 3), i, np.uint8)
        chunks.append(weakref.ref(chunk))
        shown.add(chunk, "a fox")
        del chunk
        alive = sum(ref() is not None for ref in chunks)
        assert alive <= 32 // 4 + 1, "a frame that is left must not keep those it came with"
    assert shown._pages.num_bytes <= 34 * 2 * 2 * 3
    assert all((shown.at(i)[0] == shown.kept(i) // 4).all() for i in range(256))


@pytest.mark.parametrize("aired", [None, 171, 3])
def test_frames_of_an_endless_shot_are_remembered_under_their_own_numbers(aired: int | None) -> None:
    shown = ShownFrames(limit=16)
    for i in range(200):
        shown.add(np.full((1, 2, 2, 3), i, np.uint8), "a fox")
    memory = ShotMemory(6)
    memory.add_shown(shown.first(aired))
    taken_up = ShotMemory(6)
    taken_up.recall(memory.kept(0))
    for _ in range(3):
        chosen = memory.choose("x")
        assert [int(frame.pixels[0, 0, 0]) for frame in chosen if frame.id[0] == 0] == [
            frame.id[1] for frame in chosen if frame.id[0] == 0
        ]
        assert [frame.id for frame in taken_up.choose("x")] == [frame.id for frame in chosen]
        for one in (memory, taken_up):
            one.add_shot(np.zeros((20, 2, 2, 3), np.uint8), ["the city"] * 20)


def test_room_of_a_picture_is_used_again_once_nobody_has_it() -> None:
    pages = Pages(2)
    pictures = [np.full((2, 2, 3), value, np.uint8) for value in range(9)]
    for picture in pictures:
        assert np.array_equal(pages.copy(picture), picture)
    assert pages.num_bytes == 2 * pictures[0].nbytes
    corner = pages.copy(pictures[0])[0][:1]
    others = [pages.copy(picture) for picture in pictures[1:]]
    assert not corner.any()
    assert all(np.array_equal(other, picture) for other, picture in zip(others, pictures[1:], strict=True))
