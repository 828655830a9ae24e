"""Each variant takes away what it says and nothing else, and the report tells a confirmed ordering from noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skia", reason="ablations tell drawn stories: pip install 'shotstream[eval]'")

from shotstream.engine.stream import Engine
from shotstream.evaluation import ablations
from shotstream.evaluation.ablations import LONG_VARIANTS, VARIANTS, AblationConfig, add_result, run
from shotstream.evaluation.ablations_report import CLAIMS, GROUPS, difference, verdict, write_report
from shotstream.evaluation.film import FilmedShot, Take, film, rendered
from shotstream.evaluation.readers import Reading, Seen
from shotstream.evaluation.report import machine
from shotstream.evaluation.variants import RuleMemory, SingleShotStream, Variant, VariedEngine, some_of
from shotstream.storyworld import ATTRIBUTES, WorldStory, sample_story

FAST = AblationConfig(stories=2, shots=2, num_chunks=2, long_chunks=6)


class Stub:
    """Trusted everywhere; always says the same."""

    def look(self, shot: FilmedShot) -> Seen:
        reading: Reading = {name: values[0] for name, values in ATTRIBUTES.items()}
        return Seen([reading for _ in shot.chunks], np.zeros((len(shot.chunks), 2), np.float32))

    def scored(self, attribute: str, framing: str) -> bool:
        return True


def second_shot(engine: Engine, story: WorldStory, first: FilmedShot) -> np.ndarray:
    return film(engine, story, Take(seed=3, given=(first,), num_chunks=2, last_shot=1))[1].frames


@pytest.fixture
def story() -> WorldStory:
    return sample_story(4, num_shots=3, split="heldout")


@pytest.fixture
def first(story: WorldStory) -> FilmedShot:
    return rendered(story, 0, height=32, width=64, num_chunks=2)


def test_changing_nothing_changes_no_bit(tiny_engine: Engine, story: WorldStory, first: FilmedShot):
    same = second_shot(VariedEngine(tiny_engine, Variant()), story, first)
    assert np.array_equal(same, second_shot(tiny_engine, story, first))
    assert tiny_engine.model.config.theta > 0


@pytest.mark.parametrize(
    "variant",
    [
        Variant(remember=False),
        Variant(theta=0.0),
        Variant(places=1),
        Variant(pick="first"),
        Variant(steps=1),
        Variant(single_shot=True),
    ],
)
def test_every_variant_makes_another_shot(tiny_engine: Engine, story: WorldStory, first: FilmedShot, variant: Variant):
    usual = second_shot(tiny_engine, story, first)
    varied = second_shot(VariedEngine(tiny_engine, variant), story, first)
    assert varied.shape[1:] == usual.shape[1:]
    assert not np.array_equal(varied[: len(usual)], usual)
    assert np.array_equal(second_shot(tiny_engine, story, first), usual)  # the engine itself is as before


def memory_of_two(variant: Variant) -> RuleMemory:
    memory = RuleMemory(6, variant)
    for shot in range(2):
        memory.add_shot(np.full((81, 4, 4, 3), shot, np.uint8), ["then"] * 81)
    return memory


def test_rules_pick_the_frames_they_name():
    def ids(**changes: object) -> list[tuple[int, int]]:
        return [frame.id for frame in memory_of_two(Variant(**changes)).choose("now")]  # type: ignore[arg-type]

    assert ids() == [(0, 0), (0, 40), (0, 80), (1, 0), (1, 40), (1, 80)]
    assert ids(pick="first") == [(0, 0), (1, 0)]
    assert ids(pick="first_and_last") == [(0, 0), (0, 80), (1, 0), (1, 80)]
    assert ids(places=1) == [(1, 0)]
    assert ids(places=2) == [(0, 0), (1, 0)]
    assert {frame.caption for frame in memory_of_two(Variant()).choose("now")} == {"then"}
    assert {frame.caption for frame in memory_of_two(Variant(target_caption=True)).choose("now")} == {"now"}


def test_the_rule_of_the_paper_is_the_one_that_streams_use(tiny_engine: Engine):
    story = sample_story(6, num_shots=4)
    usual = film(tiny_engine, story, Take(seed=1, num_chunks=2))
    stream = tiny_engine.stream()
    rule = RuleMemory(2, Variant())
    for shot in usual[:2]:
        stream.memory.add_shot(shot.frames, shot.frame_captions)
        rule.add_shot(shot.frames, shot.frame_captions)
        assert [f.id for f in rule.choose("now")] == [f.id for f in stream.memory.choose("now")]


def test_fewer_steps_are_those_that_were_trained():
    assert [some_of((1000, 750, 500, 250), n) for n in (1, 2, 4)] == [(1000,), (1000, 500), (1000, 750, 500, 250)]
    with pytest.raises(ValueError, match="4 levels"):
        some_of((1000, 750, 500, 250), 5)


def test_a_single_shot_goes_on_where_the_last_caption_left_it(tiny_engine: Engine, story: WorldStory):
    stream = VariedEngine(tiny_engine, Variant(single_shot=True)).stream(seed=2)
    assert isinstance(stream, SingleShotStream)
    lengths = []
    for caption in ("a fox", "a bear", "a frog"):
        stream.cut(caption, num_chunks=2)
        chunks = list(stream)
        assert [chunk.index for chunk in chunks] == [0, 1]
        lengths += [len(chunk.frames) for chunk in chunks]
    assert lengths == [9, 12, 12, 12, 12, 12]  # one take: only its first chunk is short


def test_a_given_shot_is_what_a_single_shot_goes_on_from(tiny_engine: Engine, story: WorldStory, first: FilmedShot):
    engine = VariedEngine(tiny_engine, Variant(single_shot=True))
    other = rendered(replace(story, shots=story.shots[1:]), 0, height=32, width=64, num_chunks=2)
    assert not np.array_equal(second_shot(engine, story, first), second_shot(engine, story, other))


def test_all_variants_run_and_the_report_is_written(tiny_engine: Engine, tmp_path: Path):
    path = tmp_path / "ablations.json"
    for name in ("chosen", "no_indicator", "long_no_sink"):
        add_result(path, name, list(run(tiny_engine, Stub(), name, FAST)), FAST)
    runs = json.loads(path.read_text())["runs"]
    assert {"following", "shot_cut_accuracy", "no_false_cut"} <= runs["chosen"]["measures"].keys()
    assert set(runs["long_no_sink"]["by_window"]) == {"1", "2", "3"}
    alone = tmp_path / "long.md"
    write_report(alone, {"long_no_sink": runs["long_no_sink"]}, {})
    assert "The paper's ordering" not in alone.read_text()  # of stories, and there are none
    assert f"{FAST.stories} shots of {FAST.long_chunks} chunks" in alone.read_text()
    report = path.with_suffix(".md").read_text()
    assert "chosen minus no_indicator" in report
    assert f"{FAST.stories} stories of {FAST.shots} shots" in report
    assert "third" in report
    assert runs["chosen"]["measured"]["machines"][machine(torch.device("cpu"))] == FAST.stories
    with pytest.raises(ValueError, match="another file"):
        add_result(path, "steps_1", [], replace(FAST, stories=9))


def test_only_what_one_probe_read_of_one_student_is_compared(tiny_engine: Engine, tmp_path: Path):
    path, told = tmp_path / "ablations.json", list(run(tiny_engine, Stub(), "chosen", FAST))
    add_result(path, "chosen", told, FAST, weights="a", probe="p")
    add_result(path, "chosen", told, FAST, weights="b", probe="p")  # measured anew
    for weights, probe, fault in (("a", "p", "weights b, now a"), ("b", "q", "probe p, now q")):
        with pytest.raises(ValueError, match=fault):
            add_result(path, "steps_1", told, FAST, weights=weights, probe=probe)
    add_result(path, "theta_1", told, FAST, weights="c", probe="p")  # trained: weights of its own
    assert set(json.loads(path.read_text())["runs"]) == {"chosen", "theta_1"}


def test_every_variant_that_is_compared_can_be_run():
    known = {*VARIANTS, *LONG_VARIANTS, *ablations.TRAINED}
    assert {name for group in GROUPS for name in group.variants} <= known
    assert {name for claim in CLAIMS for name in (claim.chosen, claim.other)} <= known


def test_unknown_names_and_missing_weights_are_refused(tiny_engine: Engine):
    with pytest.raises(ValueError, match="no_indicator"):
        run(tiny_engine, Stub(), "no_idea", FAST)
    with pytest.raises(ValueError, match="no_idea"):
        ablations.main(["chosen", "no_idea"])
    with pytest.raises(ValueError, match="--weights"):
        ablations.main(["theta_1"])


def test_an_ordering_is_confirmed_only_where_the_interval_says_so():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, 40)

    def told(shift: float, noise: float) -> dict[str, dict[str, dict[str, float]]]:
        other = base - shift + noise * rng.standard_normal(40)
        table = {"ours": base, "other": other}
        return {name: {"layout": {str(i): float(v) for i, v in enumerate(row)}} for name, row in table.items()}

    def said(shift: float, noise: float) -> str:
        return verdict(difference(told(shift, noise), "ours", "other", "layout"))

    assert said(0.1, 0.05) == "confirmed"
    assert said(-0.1, 0.05) == "the other way round"
    assert said(0.0, 0.3) == "cannot be told"
    assert verdict(difference({}, "ours", "other", "layout")) == "not measured"
    one = {name: {"layout": {"0": value}} for name, value in (("ours", 0.9), ("other", 0.1))}
    assert verdict(difference(one, "ours", "other", "layout")) == "too few stories"


def test_what_other_machines_filmed_is_marked(tmp_path: Path):
    config = {"stories": 40, "shots": 4, "long_chunks": 21}
    row = {"layout": {str(story): 0.5 for story in range(40)}}

    def report(*machines: str) -> str:
        places = [{"machines": {name: 40}, "date": "today", "commit": "c", "config": config} for name in machines]
        seen = {"layout": {"value": 0.5, "low": 0.4, "high": 0.6}}
        runs = {
            name: {"measures": seen, "measured": place}
            for name, place in zip(("chosen", "no_indicator"), places, strict=True)
        }
        path = tmp_path / "ablations.md"
        write_report(path, runs, dict.fromkeys(runs, row))
        return path.read_text()

    elsewhere = report("bfloat16", "float32")
    assert "cannot be told (other machine)" in elsewhere
    assert "*chosen minus no_indicator* (other machine)" in elsewhere
    assert f"Of {4 * len(CLAIMS)} orderings: {4 * len(CLAIMS) - 1} not measured, 1 cannot be told." in elsewhere
    assert "(other machine)" not in report("float32", "float32")


def test_a_jump_where_windows_meet_is_counted_once(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch):
    boundary = 9 + 12  # of two chunks, the first window of six
    monkeypatch.setattr(ablations.cuts, "find_cuts", lambda frames: [boundary])
    (story,) = run(tiny_engine, Stub(), "long_chosen", replace(FAST, stories=1))
    assert [n.value for n in story.model.tally.numbers["no_false_cut"]] == [1, 0, 1]


def test_weights_are_shared_not_copied(tiny_engine: Engine):
    varied = VariedEngine(tiny_engine, Variant(theta=0.0))
    pairs = zip(varied.model.parameters(), tiny_engine.model.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert isinstance(varied.model.patch_embedding.weight, torch.Tensor)
