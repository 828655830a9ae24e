"""The check of the text path: it knows what a caption says, and tells readable states from unreadable ones."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("skia", reason="captions come from the drawn world: pip install 'shotstream[world]'")

from shotstream.evaluation.text_path import (
    READ,
    UNSCORED,
    Readout,
    ReadoutConfig,
    accuracies,
    caption_set,
    mistakes,
    predict,
    said_attributes,
    train_readout,
)
from shotstream.storyworld import ATTRIBUTES, HIDDEN, sample_story


def test_hidden_attributes_are_never_asked_for():
    assert not set(READ) & set(HIDDEN)


def test_each_caption_has_the_classes_of_what_it_says():
    captions = caption_set("heldout", 80)
    framing = READ.index("framing")
    for caption, row in zip(captions.captions, captions.stated.tolist(), strict=True):
        if row[READ.index("character")] != UNSCORED:
            assert ATTRIBUTES["character"][row[READ.index("character")]] in caption
        if row[framing] != UNSCORED:
            assert any(word in caption.lower() for word in ("shot", "view", "close-up"))
    both = (captions.stated != UNSCORED) & (captions.silent != UNSCORED)
    assert not both.any()


def test_more_captions_can_leave_the_coat_to_the_introduction():
    usual, more = caption_set("train", 24), caption_set("train", 36, told_before=1 / 3)
    assert int(more.two_people.sum()) == 24
    assert more.captions[:12] == usual.captions[:12]
    assert more.captions[24:] == usual.captions[12:]
    clothing = READ.index("clothing")
    for caption, row in zip(more.captions[12:24], more.stated[12:24].tolist(), strict=True):
        introduction = caption.split(".")[0]
        assert ATTRIBUTES["clothing"][row[clothing]] in introduction


def test_a_steer_is_said_from_its_chunk_on():
    for seed in range(40):
        story = sample_story(seed)
        for index, spec in enumerate(story.shots):
            for change in spec.steers:
                before, after = (said_attributes(story, index, change.chunk + shift) for shift in (-1, 0))
                assert change.attribute in after
                assert change.attribute in before or change.attribute not in spec.stated


@pytest.mark.parametrize(("hops", "refiners"), [(1, 0), (2, 0), (1, 1)])
def test_a_readout_finds_what_a_token_says_and_nothing_in_noise(hops: int, refiners: int):
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(8, 16, generator=generator)
    said = torch.randint(8, (256,), generator=generator)
    states = 0.3 * torch.randn(256, 6, 16, generator=generator)
    states[torch.arange(256), torch.randint(6, (256,), generator=generator)] = words[said]
    targets = torch.full((256, len(READ)), UNSCORED)
    targets[:, READ.index("character")] = said
    config = ReadoutConfig(steps=50, batch_size=16, width=32, hops=hops, refiners=refiners, learning_rate=1e-2)
    readable = predict(train_readout(states[:192], targets[:192], config), states[192:])
    assert accuracies(readable, targets[192:])["character"][0] > 0.8
    shuffled = targets[torch.randperm(256, generator=generator)]
    unreadable = predict(train_readout(states[:192], shuffled[:192], config), states[192:])
    assert accuracies(unreadable, targets[192:])["character"][0] < 0.5


def test_what_lies_before_the_readout_learns_as_well():
    states, targets = torch.randn(32, 6, 16), torch.full((32, len(READ)), UNSCORED)
    targets[:, 0] = 1
    top = torch.nn.Linear(16, 16)
    before = top.weight.detach().clone()
    config = ReadoutConfig(steps=2, batch_size=4, width=32, top_learning_rate=1e-4)
    assert train_readout(states, targets, config, top).top is top
    moved = (top.weight - before).abs().max()
    assert 0 < moved < 3e-4, "at a rate of its own"


def test_tokens_read_one_another_but_not_what_is_empty():
    torch.manual_seed(0)
    readout = Readout(16, width=32, refiners=2)
    states = torch.randn(3, 6, 16)
    states[:, 4:] = 0
    alone, before = readout.refined(states[:, :4]), readout.refined(states)
    torch.testing.assert_close(before[:, :4], alone)
    states[:, 3] += 1
    assert (readout.refined(states)[:, 0] - before[:, 0]).abs().max() > 1e-3


def test_mistakes_name_the_caption_and_both_values():
    captions = caption_set("heldout", 40)
    predicted = captions.stated.clamp(min=0)
    place = READ.index("place")
    assert not mistakes(predicted, captions, "place")
    predicted[:, place] = (predicted[:, place] + 1) % len(ATTRIBUTES["place"])
    caption, stated, read = mistakes(predicted, captions, "place", limit=1)[0]
    assert caption in captions.captions
    assert stated != read
