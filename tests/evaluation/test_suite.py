"""The suite measures what it says: perfect readings get everything, and each failing is seen in its own number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skia", reason="evaluation draws the truth: pip install 'shotstream[eval]'")

from shotstream.engine.stream import Engine, TeacherEngine
from shotstream.evaluation.film import FilmedShot, Take, film, rendered, split_chunks, through_codec, with_uniform_marks
from shotstream.evaluation.journal import Journal
from shotstream.evaluation.questions import following, memory, own_memory, steering, unrelated
from shotstream.evaluation.readers import Reading, Seen
from shotstream.evaluation.report import HEADLINES, results, write_results
from shotstream.evaluation.suite import Crew, SuiteConfig, evaluate, evaluate_story, fingerprint
from shotstream.storyworld import ATTRIBUTES, WorldStory, sample_story
from shotstream.storyworld.probe import ProbeScores

FAST = SuiteConfig(stories=2, shots=2, num_chunks=2)
SCORES = ProbeScores(accuracy={"character": {"medium": 0.99, "wide": 0.96}}, still_accuracy={})


class Oracle:
    """Trusted everywhere; says what it is told to say."""

    def __init__(self, reading: Reading | None = None) -> None:
        self.reading = reading or {name: values[0] for name, values in ATTRIBUTES.items()}

    def look(self, shot: FilmedShot) -> Seen:
        means = np.stack([chunk.mean((0, 1, 2)) for chunk in shot.chunks]).astype(np.float32)
        return Seen([self.reading for _ in shot.chunks], means)

    def scored(self, attribute: str, framing: str) -> bool:
        return True


def perfect(story: WorldStory) -> list[list[Reading]]:
    return [[spec.labels(chunk) for chunk in range(7)] for spec in story.shots]


def changed(readings: Sequence[Sequence[Reading]], **values: str) -> list[list[Reading]]:
    return [[{**reading, **values} for reading in shot] for shot in readings]


def stories(count: int = 30) -> list[WorldStory]:
    return [sample_story(seed, num_shots=4, split="heldout") for seed in range(count)]


def test_perfect_readings_score_one_everywhere():
    for story in stories():
        readings = perfect(story)
        tally = following(Oracle(), story, 0, readings)
        tally.update(memory(Oracle(), story, 0, readings))
        tally.update(own_memory(Oracle(), story, 0, readings))
        wrong = {name for name, measure in tally.measures().items() if measure.value < 1}
        assert not wrong - {"first_mark"}


def test_every_kind_of_question_occurs():
    names: set[str] = set()
    for story in stories(60):
        names |= following(Oracle(), story, 0, perfect(story)).answers.keys()
        names |= memory(Oracle(), story, 0, perfect(story)).answers.keys()
    said = {f"said/{name}" for name in ("character", "clothing", "place", "action", "expression", "framing", "weather")}
    assert names >= said | {"pronoun", "left_out/action", "two_people/character", "unseen_pair/place"}
    assert names >= {"hidden_mark", "hidden_mark/inside_rule", "layout", "tint"}


def test_a_model_that_always_draws_the_same_hat_fails_the_hidden_mark():
    answers = []
    for number, plain in enumerate(stories(80)):
        story = with_uniform_marks(plain, np.random.default_rng(number))
        stubborn = changed(perfect(story), mark="crimson", second_mark="crimson")
        answers += memory(Oracle(), story, number, stubborn).answers.get("hidden_mark", [])
    share = np.mean([answer.right for answer in answers])
    assert share < 0.3


def test_own_memory_holds_later_shots_to_the_first_not_to_the_truth():
    steady = [s for s in stories() if s.shots[0].character == s.shots[1].character]
    story = steady[0]
    readings = changed(perfect(story), mark="ivory")
    assert own_memory(Oracle(), story, 0, readings).measures()["own_hidden_mark"].value == 1
    readings[1] = changed([readings[1]], mark="jade")[0]
    assert own_memory(Oracle(), story, 0, readings).measures()["own_hidden_mark"].value < 1


def steered_shot() -> tuple[WorldStory, int]:
    for story in stories(60):
        for index, spec in enumerate(story.shots):
            if [change.attribute for change in spec.steers] == ["expression"] and spec.steers[0].chunk <= 4:
                return story, index
    raise AssertionError("no steered shot among the stories")


def test_a_steer_counts_only_if_it_shows_soon_and_would_not_have_shown_anyway():
    story, index = steered_shot()
    spec = story.shots[index]
    steered = [spec.labels(chunk) for chunk in range(7)]
    plain = [replace(spec, steers=()).labels(chunk) for chunk in range(7)]

    def share(steered: list[Reading], twin: list[Reading]) -> float:
        return steering(Oracle(), story, 0, index, steered, twin).measures()["steering"].value

    late = [plain[c] if c < spec.steers[0].chunk + 2 else steered[c] for c in range(7)]
    assert share(steered, plain) == 1
    assert share(steered, steered) == 0
    assert share(plain, plain) == 0
    assert share(late, plain) == 0


def test_a_story_that_begins_with_given_shots_goes_on_as_if_they_had_been_made_here(tiny_engine: Engine):
    story = sample_story(3, num_shots=3, split="train")
    shots = film(tiny_engine, story, Take(seed=5, num_chunks=2))
    again = film(tiny_engine, story, Take(seed=5, given=shots[:2], num_chunks=2))
    assert np.array_equal(again[2].frames, shots[2].frames)


def test_a_twin_is_the_same_until_its_steer(tiny_engine: Engine):
    story, index = steered_shot()
    chunk = story.shots[index].steers[0].chunk
    earlier = film(tiny_engine, story, Take(seed=1, last_shot=index))
    steered = earlier[index]
    take = Take(seed=1, given=earlier[:index], last_shot=index, steered=False)
    twin = film(tiny_engine, story, take)[-1]
    assert all(np.array_equal(steered.chunks[c], twin.chunks[c]) for c in range(chunk))
    assert not np.array_equal(steered.chunks[chunk], twin.chunks[chunk])


def test_without_memory_what_was_given_does_not_matter(tiny_engine: Engine):
    story = sample_story(4, num_shots=2)
    size = {"height": 32, "width": 64, "num_chunks": 2}
    one = rendered(story, 0, **size)
    other = rendered(with_uniform_marks(story, np.random.default_rng(3)), 1, **size)

    def second(given: FilmedShot, remember: bool) -> np.ndarray:
        return film(tiny_engine, story, Take(seed=0, given=(given,), remember=remember, num_chunks=2))[1].frames

    assert np.array_equal(second(one, remember=False), second(other, remember=False))
    assert not np.array_equal(second(one, remember=True), second(other, remember=True))


def test_chunks_of_renders_are_those_of_a_stream(tiny_engine: Engine):
    story = sample_story(4, num_shots=1)
    shot = rendered(story, 0, height=32, width=64)
    assert [len(chunk) for chunk in shot.chunks] == [9, *[12] * 6]
    assert [len(chunk) for chunk in split_chunks(shot.frames)] == [9, *[12] * 6]
    copy = through_codec(shot, tiny_engine.codec)
    assert [chunk.shape for chunk in copy.chunks] == [chunk.shape for chunk in shot.chunks]


def test_a_steer_that_changes_the_hat_or_the_place_has_failed():
    story, index = steered_shot()
    spec = story.shots[index]
    plain = [replace(spec, steers=()).labels(chunk) for chunk in range(7)]
    steered = [spec.labels(chunk) for chunk in range(7)]
    first = spec.steers[0].chunk
    other = "ivory" if spec.mark != "ivory" else "jade"
    swapped = [{**reading, "mark": other} if chunk >= first else reading for chunk, reading in enumerate(steered)]
    measures = steering(Oracle(), story, 0, index, swapped, plain).measures()
    assert measures["steering"].value == 0
    assert measures["steering_shows"].value == 1
    assert measures["steering_keeps/mark"].value == 0


def test_what_captions_alone_bring_about_is_told_from_memory():
    story = next(s for s in stories() if s.shots[0].character == s.shots[1].character)
    kept = perfect(story)
    other = changed(kept, mark="jade" if story.shots[0].mark != "jade" else "ivory")[0]
    assert own_memory(Oracle(), story, 0, kept).measures()["own_hidden_mark"].value == 1
    tally = unrelated(Oracle(), story, 0, kept, other)
    assert all(not a.right for a in tally.answers["unrelated_hidden_mark"] if a.shot == 2)


def test_recall_is_scored_apart_where_the_published_rule_has_forgotten():
    names: set[str] = set()
    for seed in range(20):
        story = sample_story(seed, num_shots=12, split="heldout")
        tally = memory(Oracle(), story, 0, perfect(story))
        names |= tally.answers.keys()
        assert all(answer.shot > 7 for answer in tally.answers.get("layout/outside_rule", []))
    assert names >= {"layout/inside_rule", "layout/outside_rule", "hidden_mark/outside_rule"}


def test_the_whole_suite_runs_on_an_untrained_model(tiny_engine: Engine, tmp_path: Path):
    finished = list(evaluate(tiny_engine, Oracle(), FAST))
    path = tmp_path / "results" / "storyworld.json"
    content = results(finished, SCORES, FAST)
    content["details"] |= {"transnet": "absent", "nearest_training_latent": "not measured"}
    write_results(path, "student", content)
    write_results(path, "teacher", content)
    written = json.loads(path.read_text())
    assert {"ceiling", "student", "teacher", "student_minus_teacher", *HEADLINES} <= written.keys()
    assert {"value", "low", "high", "chance"} <= written["student"]["said/character"].keys()
    assert {"sharpness", "frechet_distance", "shot_cut_accuracy", "no_false_cut"} <= written["student"].keys()
    assert written["shot_cut_accuracy"] == written["student"]["shot_cut_accuracy"]["value"]
    assert written["student_minus_teacher"]["mean_of_attributes"]["value"] == 0
    assert set(written["student_details"]["by_shot"]["model"]["sharpness"]) == {"1", "2"}
    assert written["student_details"]["frames_per_second"] > 0
    report = path.with_suffix(".md").read_text()
    assert "frames/s." in report
    assert "said/character" in report
    assert "prompt_following_of_ceiling" in report
    assert "| character | 99.0 | (96.0) |" in report
    assert "(2 stories)" in report  # too few for an interval


def test_a_part_without_anything_to_draw_by_shot_is_reported_all_the_same(tiny_engine: Engine, tmp_path: Path):
    config = replace(FAST, parts=("forgetful",))
    content = results(list(evaluate(tiny_engine, Oracle(), config)), SCORES, config)
    content["details"] |= {"transnet": "absent", "nearest_training_latent": "not measured"}
    write_results(tmp_path / "storyworld.json", "student", content)
    assert "forgetful_layout" in (tmp_path / "storyworld.md").read_text()


def test_models_read_by_different_probes_are_not_paired(tiny_engine: Engine, tmp_path: Path):
    path, finished = tmp_path / "storyworld.json", list(evaluate(tiny_engine, Oracle(), FAST))
    for model, scores in (("student", SCORES), ("teacher", replace(SCORES, accuracy={}))):
        content = results(finished, scores, FAST)
        content["details"] |= {"transnet": "absent", "nearest_training_latent": "not measured"}
        write_results(path, model, content)
    assert "student_minus_teacher" not in json.loads(path.read_text())


def test_long_stories_are_known_by_their_numbers(tiny_engine: Engine):
    config = replace(FAST, shots=12, long_stories=1)
    assert [config.is_long(number) for number in config.lengths] == [False] * FAST.stories + [True]
    assert sum(config.lengths.values()) == 12 * (FAST.stories + 1)


def test_samples_learnt_by_heart_are_looked_for_once_for_the_same_weights(tiny_engine: Engine, tmp_path: Path):
    path, content = tmp_path / "storyworld.json", results(list(evaluate(tiny_engine, Oracle(), FAST)), SCORES, FAST)
    found = {"learnt_by_heart": 0.0, "samples": 24, "ratio": {"value": 1.1, "low": 1.0, "high": 1.2, "stories": 24}}

    def written(weights: str, nearest: object) -> object:
        content["details"] |= {"transnet": "absent", "weights": weights, "nearest_training_latent": nearest}
        write_results(path, "student", content)
        return json.loads(path.read_text())["student_details"]["nearest_training_latent"]

    assert written("one", found) == found
    assert written("one", "not measured") == found
    assert written("another", "not measured") == "not measured"


def test_a_report_says_how_many_stories_each_machine_filmed(tiny_engine: Engine, tmp_path: Path):
    here, elsewhere = evaluate(tiny_engine, Oracle(), FAST)
    elsewhere.machine = "a bigger machine"
    path = tmp_path / "storyworld.json"
    content = results([here, elsewhere], SCORES, FAST, processes=2)
    content["details"] |= {"transnet": "absent", "nearest_training_latent": "not measured"}
    write_results(path, "student", content)
    assert content["details"]["measured"]["machines"] == {here.machine: 1, "a bigger machine": 1}
    report = path.with_suffix(".md").read_text()
    assert f"1 on {here.machine} and 1 on a bigger machine" in report
    assert "frames/s, each of 2 processes side by side." in report


def test_a_fingerprint_knows_weights_at_any_precision(engine_on: Callable[..., Engine]):
    cpu = torch.device("cpu")
    one, half, other = engine_on(cpu), engine_on(cpu, dtype=torch.bfloat16), engine_on(cpu)
    with torch.no_grad():
        next(other.model.parameters())[:1] += 0.1
    assert fingerprint(half) == fingerprint(one)
    assert fingerprint(other) != fingerprint(one)


def test_a_journal_keeps_finished_stories(tiny_engine: Engine, tmp_path: Path):
    path, subject = tmp_path / "journal.jsonl", {"model": "tiny"}
    one = replace(FAST, stories=1)
    first = list(evaluate(tiny_engine, Oracle(), one, Journal(path, subject)))
    with path.open("a") as file:
        file.write('{"story": 17, "unfini')
    again = list(evaluate(tiny_engine, Oracle({}), one, Journal(path, subject)))
    assert again[0].machine == first[0].machine != ""
    assert again[0].model.tally.measures() == first[0].model.tally.measures()
    assert again[0].ceiling.tally.measures() == first[0].ceiling.tally.measures()
    for shot, features in first[0].model.features.items():
        np.testing.assert_allclose(again[0].model.features[shot], features, rtol=1e-3)
    with pytest.raises(ValueError, match="another run"):
        Journal(path, {"model": "other"})


def test_a_story_that_a_killed_run_left_unfinished_is_filmed_again(tiny_engine: Engine, tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    list(evaluate(tiny_engine, Oracle(), replace(FAST, stories=1), Journal(path, {})))
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    list(evaluate(tiny_engine, Oracle(), replace(FAST, stories=1), Journal(path, {})))
    assert list(Journal(path, {}).done) == [0]


def test_parts_can_be_left_out(tiny_engine: Engine):
    result = evaluate_story(Crew(tiny_engine, Oracle()), 0, replace(FAST, parts=("memory",)))
    assert not result.ceiling.tally.answers
    assert not any(name.startswith("said/") for name in result.model.tally.answers)


def test_a_teacher_is_measured_on_the_same_stories(tiny_engine: Engine):
    parts = tiny_engine.preset, tiny_engine.model, tiny_engine.codec, tiny_engine.text
    config = replace(FAST, stories=4, parts=("following", "memory", "steering"))
    teacher, student = (evaluate_story(Crew(e, Oracle()), 3, config) for e in (TeacherEngine(*parts), tiny_engine))
    questions = {name: len(group) for name, group in teacher.model.tally.answers.items()}
    assert questions == {name: len(group) for name, group in student.model.tally.answers.items()}


def test_the_same_seed_gives_the_same_results(tiny_engine: Engine):
    one, two = (evaluate_story(Crew(tiny_engine, Oracle()), 1, FAST).model.tally for _ in range(2))
    assert one == two
