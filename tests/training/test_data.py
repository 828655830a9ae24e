"""Sampling from the library keeps the promises of memory, captions and dropouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import COLOURS, FRAMES, LATENTS, TEXT_LENGTH, states, write_library

from shotstream.engine.memory import allocate_context, evenly_spaced
from shotstream.training.data import (
    NO_CAPTION,
    NO_FRAME,
    LatentLibrary,
    Sampler,
    SamplerConfig,
    chunk_of_pixel,
    context_rule,
    frames_ever_asked_for,
    people_around,
)
from shotstream.training.randomness import generator_at

PLAIN = SamplerConfig(drop_context=0, drop_text=0, random_context=0, empty_context_captions=0, context_noise=0)


@pytest.fixture(scope="module")
def library(toy_library: Path) -> LatentLibrary:
    return LatentLibrary(toy_library, text_length=TEXT_LENGTH)


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        (1, ((0, 16, 32, 48, 64, 80),)),
        (2, ((0, 40, 80), (0, 40, 80))),
        (3, ((0, 80), (0, 80), (0, 80))),
        (4, ((0,), (0,), (0, 80), (0, 80))),
        (5, ((0,), (0,), (0,), (0,), (0, 80))),
        (6, ((0,),) * 6),
        (7, ((), *((0,),) * 6)),
        (8, ((), (), *((0,),) * 6)),
    ],
)
def test_memory_follows_the_published_table(earlier: int, expected: tuple[tuple[int, ...], ...]):
    counts = allocate_context(earlier, 6)
    assert tuple(evenly_spaced(0, 80, count) for count in counts) == expected
    assert context_rule(earlier, 6, 81) == tuple((i, p) for i, frames in enumerate(expected) for p in frames)


def test_every_frame_that_memory_will_ask_for_is_kept():
    kept = {(shot, p) for shot in range(12) for p in frames_ever_asked_for(shot, 12, 6, FRAMES)}
    asked = {frame for earlier in range(1, 12) for frame in context_rule(earlier, 6, FRAMES)}
    assert kept == asked


def test_pixel_frames_belong_to_chunks_of_nine_then_twelve():
    assert [chunk_of_pixel(p) for p in (0, 8, 9, 20, 21, 80)] == [0, 0, 1, 1, 2, 6]


def test_a_batch_is_the_same_however_it_is_drawn(library: LatentLibrary):
    sampler = Sampler(library, SamplerConfig(target_frames=6))
    whole = sampler.batch(5, range(4))
    alone = sampler.batch(5, [2])
    torch.testing.assert_close(alone.target[0], whole.target[2])
    torch.testing.assert_close(alone.context[0], whole.context[2])
    torch.testing.assert_close(alone.text[alone.caption_ids[0]], whole.text[whole.caption_ids[2]])


def test_the_first_shot_starts_from_six_empty_frames_and_counts_as_shot_one(library: LatentLibrary):
    batch = Sampler(library, replace(PLAIN, first_shot=1.0)).batch(0, range(4))
    assert batch.context.abs().max() == 0
    assert batch.shot_ids[:, :6].eq(0).all()
    assert batch.shot_ids[:, 6:].eq(1).all()
    assert batch.caption_ids[:, :6].eq(batch.caption_ids[:, 6:7]).all()


def test_later_shots_remember_by_the_rule_in_order(library: LatentLibrary):
    sampler = Sampler(library, replace(PLAIN, first_shot=0.0))
    for sample in range(20):
        plan = sampler.plan(generator_at("order", sample))
        story, shot = (int(library.clip_table[name][plan.target[0]]) for name in ("story", "shot"))
        rows = list(plan.context)
        found = [(int(library.frame_table["shot"][r]), int(library.frame_table["pixel_frame"][r])) for r in rows]
        assert tuple(found) == context_rule(shot, 6, FRAMES)
        assert {int(library.frame_table["story"][r]) for r in rows} == {story}
        assert plan.shot == shot


def test_random_memory_keeps_story_order_and_repeats_what_is_too_little(library: LatentLibrary):
    sampler = Sampler(library, replace(PLAIN, first_shot=0.0, random_context=1.0))
    sizes = set()
    for sample in range(40):
        plan = sampler.plan(generator_at("random", sample))
        assert NO_FRAME not in plan.context
        table = library.frame_table
        order = [(int(table["shot"][r]), int(table["pixel_frame"][r])) for r in plan.context]
        assert order == sorted(order)
        assert max(plan.context_shots) < plan.shot
        sizes.add(len(set(plan.context)))
    assert len(sizes) > 3


def test_a_caption_is_found_by_its_words(library: LatentLibrary):
    for colour in COLOURS:
        torch.testing.assert_close(library.states_of(colour), states([colour]))
    assert library.states_of("").abs().max() == 0
    with pytest.raises(ValueError, match="no caption of the library reads 'violet'"):
        library.states_of("violet")


def test_dropped_text_is_zeros_everywhere(library: LatentLibrary):
    batch = Sampler(library, replace(PLAIN, drop_text=1.0)).batch(0, range(3))
    assert batch.caption_ids.abs().max() == 0
    assert batch.text[0].abs().max() == 0


def test_what_guidance_is_measured_against_is_also_trained_on(library: LatentLibrary):
    """A batch made blank is what samples without anything look like: no caption, no memory, a story's first shot."""
    asked = Sampler(library, replace(PLAIN, first_shot=0.0)).batch(0, range(3))
    blank, trained = asked.blank(), Sampler(library, replace(PLAIN, first_shot=0.0, drop_all=1.0)).batch(0, range(3))
    assert asked.context.abs().max() > 0
    torch.testing.assert_close(blank.target, asked.target)
    for mine, other in ((blank.context, trained.context), (blank.shot_ids, trained.shot_ids)):
        assert torch.equal(mine, other)
    assert torch.equal(blank.text[blank.caption_ids], trained.text[trained.caption_ids])


def test_captions_reach_the_frames_they_describe(library: LatentLibrary):
    sampler = Sampler(library, replace(PLAIN, first_shot=0.0))
    batch = sampler.batch(1, range(6))
    colours = batch.text[batch.caption_ids][:, :, 0, : len(COLOURS)].argmax(-1)
    shown = (batch.target[:, :, 0].mean((-1, -2)) > 0).long() + 2 * (batch.target[:, :, 1].mean((-1, -2)) > 0).long()
    assert torch.equal(colours[:, 6:], shown)


def test_important_cells_weigh_more_in_the_loss(library: LatentLibrary):
    batch = Sampler(library, replace(PLAIN, singles=4)).batch(0, range(2))
    assert batch.weight.shape == (2, 4, 1, 4, 4)
    assert batch.weight[0, 0, 0].tolist() == (1 + torch.eye(4)).tolist()


def test_the_fewer_important_cells_a_frame_has_the_more_each_weighs(library: LatentLibrary):
    config = replace(PLAIN, important_share=0.2, important_weight=2.0, largest_weight=8.0)
    important = torch.zeros(1, 3, 12, 20, dtype=torch.bool)
    important[0, 0, :2, :1], important[0, 1, :4, :4], important[0, 2, :10, :10] = True, True, True
    one, some, many = Sampler(library, config).cell_weight(important)[0]
    assert one.max() == 8.0
    assert some[:4, :4].sum() == pytest.approx(0.2 * some.sum())
    assert many.max() == 2.0
    assert one.min() == some.min() == many.min() == 1.0


def test_people_reach_below_and_beside_their_faces(library: LatentLibrary):
    face = torch.zeros(1, 2, 12, 20, dtype=torch.bool)
    face[0, 0, 3:5, 9:11] = True
    people = people_around(face)
    assert people[0, 0].nonzero().amin(0).tolist() == [3, 8]
    assert people[0, 0].nonzero().amax(0).tolist() == [7, 11]
    assert people[0, 0].sum() == 5 * 4
    assert not people[0, 1].any()


def test_whole_people_have_their_share_of_the_loss(library: LatentLibrary):
    face = torch.zeros(1, 1, 12, 20, dtype=torch.bool)
    face[0, 0, 3:5, 9:11] = True
    config = replace(PLAIN, important_weight=2.0, important_share=0.01, person_share=0.3)
    weight = Sampler(library, config).cell_weight(face)[0, 0]
    people = people_around(face)[0, 0]
    assert weight[people].sum() == pytest.approx(0.3 * weight.sum())
    assert weight[~people].eq(1).all()
    heavier = Sampler(library, replace(config, important_weight=7.0)).cell_weight(face)[0, 0]
    assert heavier[face[0, 0]].eq(7).all()  # a face is never lighter than without
    bounded = Sampler(library, replace(config, person_share=0.9, largest_weight=4.0)).cell_weight(face)[0, 0]
    assert bounded[people].eq(4).all()


def test_lone_frames_have_no_memory(library: LatentLibrary):
    batch = Sampler(library, replace(PLAIN, singles=1, context_frames=0)).batch(0, range(5))
    assert batch.context.shape[:2] == (5, 0)
    assert batch.target.shape[:2] == (5, 1)


def test_dropouts_happen_as_often_as_asked(library: LatentLibrary):
    sampler = Sampler(library, SamplerConfig(target_frames=LATENTS, first_shot=0.0))
    plans = [sampler.plan(generator_at("rate", i)) for i in range(600)]
    without_text = sum(set(p.target_captions) == {NO_CAPTION} for p in plans) / len(plans)
    without_memory = sum(set(p.context) == {NO_FRAME} for p in plans) / len(plans)
    assert without_text == pytest.approx(0.1, abs=0.04)
    assert without_memory == pytest.approx(0.1, abs=0.04)


def test_an_empty_folder_says_what_to_do(tmp_path: Path):
    with pytest.raises(ValueError, match="no shards"):
        LatentLibrary(tmp_path)


def test_shots_of_two_people_can_be_drawn_more_often(library: LatentLibrary):
    def share(singles: int, context_frames: int, wanted: float) -> float:
        config = replace(PLAIN, two_people=wanted, singles=singles, context_frames=context_frames)
        sampler = Sampler(library, config)
        labels = [label["second_character"] for step in range(40) for label in sampler.labels(step, range(4))]
        return labels.count("fox") / len(labels)

    for singles, context_frames in ((0, 6), (2, 6), (1, 0)):
        assert share(singles, context_frames, 1.0) == 1
        assert 0.1 < share(singles, context_frames, 0.0) < 0.9


def test_asking_for_two_people_where_there_are_none_is_refused(library: LatentLibrary, monkeypatch: pytest.MonkeyPatch):
    alone = {story: [{"second_character": "none"}] * len(shots) for story, shots in library.labels.items()}
    monkeypatch.setitem(vars(library), "labels", alone)
    with pytest.raises(ValueError, match="encode more stories"):
        Sampler(library, replace(PLAIN, two_people=0.5))


def test_shots_that_are_steered_within_what_is_trained_on_can_be_drawn_more_often(
    library: LatentLibrary, monkeypatch: pytest.MonkeyPatch
):
    captions = library.clip_caption.copy()
    captions[::5, 2:] = (captions[::5, :1] + 1) % len(COLOURS)  # from the third chunk on
    monkeypatch.setattr(library, "clip_caption", captions)

    def share(frames: int, wanted: float) -> float:
        sampler = Sampler(library, replace(PLAIN, steered=wanted, target_frames=frames))
        plans = [sampler.plan(generator_at("steered", i)) for i in range(120)]
        return sum(plan.target[0] % 5 == 0 for plan in plans) / len(plans)

    assert share(9, 1.0) == share(21, 1.0) == 1
    assert 0.4 < share(9, 0.5) < 0.8
    for frames, wanted in ((6, 1.0), (9, 0.0)):
        assert 0.05 < share(frames, wanted) < 0.4
    lengths = Sampler(library, replace(PLAIN, steered=1.0, lengths=(6, 9)))
    drawn = {}
    for step in range(20):
        rows = [lengths.plan(generator_at(0, "samples", step, i), lengths.num_frames(step)).target[0] for i in range(4)]
        drawn.setdefault(lengths.num_frames(step), []).extend(row % 5 == 0 for row in rows)
        shots = [int(library.clip_table["shot"][row]) for row in rows]
        assert [label["second_character"] for label in lengths.labels(step, range(4))] == [
            ("none", "fox")[shot % 2] for shot in shots
        ]
    assert all(drawn[9])
    assert not all(drawn[6])


def test_steering_where_there_is_none_is_refused(library: LatentLibrary):
    with pytest.raises(ValueError, match="the library has none"):
        Sampler(library, replace(PLAIN, steered=0.5))
    with pytest.raises(ValueError, match="leave one of them out"):
        replace(PLAIN, steered=0.5, singles=4)


def test_shots_of_several_lengths_are_drawn_by_step(library: LatentLibrary):
    sampler = Sampler(library, replace(PLAIN, lengths=(3, 9, 15)))
    drawn = [sampler.num_frames(step) for step in range(60)]
    assert set(drawn) == {3, 9, 15}
    assert drawn == [Sampler(library, sampler.config).num_frames(step) for step in range(60)]
    whole = Sampler(library, PLAIN)
    for step in range(4):
        short, full = sampler.batch(step, range(2)), whole.batch(step, range(2))
        frames = drawn[step]
        assert short.shot_ids.shape == short.caption_ids.shape == (2, 6 + frames)
        torch.testing.assert_close(short.target, full.target[:, :frames])
        torch.testing.assert_close(short.weight, full.weight[:, :frames])
        torch.testing.assert_close(short.context, full.context)


@pytest.mark.parametrize("lengths", [(0, 3), (3, 24)])
def test_a_length_that_no_clip_has_is_refused(lengths: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.21"):
        SamplerConfig(lengths=lengths)


@pytest.mark.parametrize("changes", [{}, {"singles": 2}, {"singles": 2, "context_frames": 0}, {"captions_only": True}])
def test_a_step_takes_latents_of_one_size(library_of_two_sizes: Path, changes: dict[str, object]):
    library = LatentLibrary(library_of_two_sizes, text_length=TEXT_LENGTH)
    assert library.sizes == [(4, 4), (4, 6)]
    sampler, again = (Sampler(library, SamplerConfig(target_frames=3, **changes)) for _ in range(2))
    widths = []
    for step in range(60):
        batch = sampler.batch(step, range(2))
        assert batch.weight.shape[-2:] == batch.target.shape[-2:]
        assert batch.context.shape[-2:] == batch.target.shape[-2:]
        torch.testing.assert_close(again.batch(step, [1]).target[0], batch.target[1])
        widths.append(batch.target.shape[-1])
    assert 10 < widths.count(6) < 30  # a third of the stories


def test_stories_of_one_number_and_two_sizes_stay_apart(library_of_two_sizes: Path):
    library = LatentLibrary(library_of_two_sizes, text_length=TEXT_LENGTH)
    sampler = Sampler(library, replace(PLAIN, first_shot=0.0, target_frames=3))
    for step in range(30):
        batch = sampler.batch(step, range(1))
        marks = torch.cat([batch.context, batch.target], dim=1)[:, :, 3].mean((-1, -2)) > 0
        assert marks.all() or not marks.any()
        assert len(sampler.labels(step, range(2))) == 2


def test_latents_of_two_codecs_are_not_mixed(tmp_path: Path):
    folder = write_library(tmp_path, stories=1)
    more = write_library(tmp_path / "other", stories=1) / "shard-00000"
    np.save(more / "frame_latent.npy", np.zeros((1, 7, 4, 4), np.float16))
    more.rename(folder / "shard-00001")
    with pytest.raises(ValueError, match="latents of 4 and 7 channels: keep those of one codec"):
        LatentLibrary(folder)
