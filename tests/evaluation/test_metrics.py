"""Intervals, chance and distances."""

from __future__ import annotations

import numpy as np
import pytest

from shotstream.evaluation.metrics import (
    ENOUGH_STORIES,
    Answer,
    Tally,
    chance_agreement,
    entropy_measure,
    frechet_distance,
    frechet_measure,
    normalised_entropy,
    of_ceiling,
    paired_mean,
    rare_names,
    share_right,
    sharpness,
)


def answers(stories: int, per_story: int, right: float, seed: int = 0) -> list[Answer]:
    rng = np.random.default_rng(seed)
    return [
        Answer(story=story, wanted="red", read="red" if rng.random() < right else "blue")
        for story in range(stories)
        for _ in range(per_story)
    ]


def shares(group: list[Answer]) -> dict[int, float]:
    return Tally(answers={"mark": group}).per_story()["mark"]


def test_the_interval_holds_the_share_and_narrows_with_more_stories():
    few, many = share_right(answers(10, 3, 0.7)), share_right(answers(1000, 3, 0.7))
    for measure in (few, many):
        assert measure.low <= measure.value <= measure.high
    assert many.high - many.low < few.high - few.low
    assert many.low < 0.7 < many.high


def test_stories_not_readings_decide_the_interval():
    alike = [Answer(story=s, wanted="a", read="a" if s % 2 else "b") for s in range(20) for _ in range(50)]
    lone = [Answer(story=s, wanted="a", read="a" if s % 2 else "b") for s in range(20)]
    wide, same = share_right(alike), share_right(lone)
    assert wide.high - wide.low == pytest.approx(same.high - same.low)


def test_where_one_value_is_wanted_throughout_there_is_no_chance():
    told = [Answer(story=i, wanted="yes", read=("yes", "no")[i % 2]) for i in range(6)]
    assert chance_agreement(told) is None
    assert share_right(told).value == pytest.approx(0.5)


def test_always_answering_the_same_is_chance():
    wanted = ["red", "blue", "jade", "red"]
    stubborn = [Answer(story=i, wanted=w, read="red") for i, w in enumerate(wanted)]
    measure = share_right(stubborn)
    assert measure.value == pytest.approx(chance_agreement(stubborn))
    assert measure.chance == pytest.approx(0.5)


def test_no_answers_have_no_share():
    with pytest.raises(ValueError, match="no answers"):
        share_right([])


def test_a_tally_pools_what_stories_add():
    one, two = Tally(), Tally()
    one.add("mark", 0, "red", "red")
    two.add("mark", 1, "red", "blue")
    one.update(two)
    assert one.measures()["mark"].value == 0.5
    assert one.measures()["mark"].stories == 2


def test_a_paired_difference_uses_the_stories_both_tell():
    ours, theirs = shares(answers(50, 4, 0.9, seed=1)), shares(answers(60, 4, 0.5, seed=2))
    difference = paired_mean(ours, theirs)
    assert difference.stories == 50
    assert difference.low < 0.4 < difference.high
    assert paired_mean(ours, ours).value == 0
    assert paired_mean(ours, {60: 1.0}) is None


def test_entropy_is_one_for_all_values_alike_and_zero_for_one():
    assert normalised_entropy(["a", "b", "c", "d"] * 3, 4) == pytest.approx(1)
    assert normalised_entropy(["a"] * 5, 4) == pytest.approx(0)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((20000, 3))
    b = 2 * rng.standard_normal((20000, 3)) + 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(3 * 1 + 3 * (1 + 4 - 2 * 2), rel=0.05)


def test_a_blurred_picture_is_less_sharp():
    frames = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    blurred = ((frames[:, 1:].astype(int) + frames[:, :-1]) // 2).astype(np.uint8)
    assert sharpness(blurred) < sharpness(frames)


def test_a_share_of_the_ceiling_is_a_mean_over_attributes_and_drawn_together():
    ours, ceiling = Tally(), Tally()
    for story in range(40):
        ours.add("said/place", story, "city", "city" if story % 2 else "snow field")
        ceiling.add("said/place", story, "city", "city")
        for tally in (ours, ceiling):  # what the probe cannot read holds back both alike
            tally.add("said/action", story, "waving", "waving" if story % 4 else "standing")
    measure = of_ceiling(ours, ceiling, ["said/place", "said/action", "said/weather"])
    assert measure is not None
    assert measure.value == pytest.approx((0.5 + 1) / 2)
    assert measure.low < measure.value < measure.high
    alone = of_ceiling(ours, ceiling, ["said/action"])
    assert alone is not None
    assert (alone.low, alone.high) == (1, 1)
    assert of_ceiling(ours, ceiling, ["said/weather"]) is None


def told_of_weather(count: int) -> tuple[Tally, Tally]:
    """40 stories with half of their places right; `count` of them also ask for the weather, and never get it."""
    ours, ceiling = Tally(), Tally()
    for story in range(40):
        ours.add("said/place", story, "city", "city" if story % 2 else "beach")
        ceiling.add("said/place", story, "city", "city")
        if story < count:
            ours.add("said/weather", story, "rain", "clear")
            ceiling.add("said/weather", story, "rain", "rain")
    return ours, ceiling


def test_what_hardly_any_story_asks_does_not_weigh_as_much_as_all_else():
    names = ["said/place", "said/weather"]
    ours, ceiling = told_of_weather(ENOUGH_STORIES - 1)
    assert rare_names(ours, names) == ["said/weather"]
    measure = of_ceiling(ours, ceiling, names)
    assert measure is not None
    assert measure.value == pytest.approx(0.5)
    alone = of_ceiling(ours, ceiling, ["said/weather"])
    assert alone is not None
    assert alone.value == 0


def test_draws_that_leave_out_an_attribute_do_not_lift_the_interval():
    ours, ceiling = told_of_weather(ENOUGH_STORIES)
    measure = of_ceiling(ours, ceiling, ["said/place", "said/weather"])
    assert measure is not None
    assert measure.value == pytest.approx(0.25)
    assert measure.high < 0.4  # places alone have 0.5


def test_chance_among_pooled_answers_is_that_of_each_question():
    stubborn = [("place city", "place city"), ("place beach", "place city"), ("coat red", "coat red")] * 10
    tally = Tally()
    for story, (wanted, read) in enumerate(stubborn):
        tally.add("said", story, wanted, read)
    measure = tally.measures()["said"]
    assert measure.chance == pytest.approx(measure.value)  # always the same answer to the same question


def test_entropy_of_a_few_draws_is_that_of_what_they_were_drawn_from():
    rng = np.random.default_rng(0)
    drawn = [normalised_entropy(["abcdef"[i] for i in rng.integers(6, size=24)], 6) for _ in range(300)]
    assert 0.97 < float(np.mean(drawn)) <= 1


def test_features_of_the_same_stories_are_drawn_together():
    rng = np.random.default_rng(0)
    truth = {story: rng.standard_normal((7, 3)) + rng.standard_normal(3) for story in range(20)}
    near = {story: features + 0.1 * rng.standard_normal((7, 3)) for story, features in truth.items()}
    together = frechet_measure(near, truth)
    apart = frechet_measure(near, {story + 100: features for story, features in truth.items()})
    assert together.value == apart.value
    assert together.high - together.low < (apart.high - apart.low) / 2


def test_entropy_and_frechet_intervals_hold_their_value():
    rng = np.random.default_rng(0)
    marks = {story: "abcdef"[int(rng.integers(6))] for story in range(100)}
    entropy = entropy_measure(marks, 6)
    assert entropy.low < entropy.value <= entropy.high <= 1
    assert entropy.value > 0.9
    one, two = ({s: rng.standard_normal((7, 3)) for s in range(20)} for _ in range(2))
    near = frechet_measure(one, two)
    far = frechet_measure(one, {s: f + 2 for s, f in two.items()})
    assert near.low <= near.value <= near.high
    assert far.low > near.high


def test_tallies_are_told_apart_by_shot_and_by_story():
    tally = Tally()
    tally.add("mark", 0, "red", "red", shot=1)
    tally.add("mark", 1, "red", "blue", shot=2)
    tally.note("sharpness", 0, 3.0, shot=2)
    assert tally.of_shots({2}).measures().keys() == {"mark", "sharpness"}
    assert tally.of_shots({2}).measures()["mark"].value == 0
    assert tally.per_story() == {"mark": {0: 1.0, 1: 0.0}, "sharpness": {0: 3.0}}
