"""A network that remembers its own pictures learns on frames as it would draw them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_processes import TINY
from worlds import TEXT_LENGTH

from shotstream.models.dit import DiT
from shotstream.training.data import LatentLibrary, Sampler, SamplerConfig
from shotstream.training.teacher import FlowConfig, NoisyBatch, TeacherStage, drawn_anew

LATER_SHOTS = SamplerConfig(singles=2, first_shot=0.0, drop_context=0.0, drop_text=0.0, empty_context_captions=0.0)


@pytest.fixture(scope="module")
def library(toy_library: Path) -> LatentLibrary:
    return LatentLibrary(toy_library, text_length=TEXT_LENGTH)


def stage(library: LatentLibrary, share: float, sampler: SamplerConfig = LATER_SHOTS) -> TeacherStage:
    torch.manual_seed(0)
    model = DiT(replace(TINY, num_layers=2))
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            torch.nn.init.normal_(parameter, std=0.5)
    return TeacherStage(model, Sampler(library, sampler), FlowConfig(own_context=share))


def noise_and_sigma(batch: NoisyBatch) -> tuple[torch.Tensor, torch.Tensor]:
    assert batch.context_noise is not None
    assert batch.context_sigma is not None
    return batch.context_noise, batch.context_sigma


def test_a_frame_is_drawn_from_itself_and_its_caption_alone(library: LatentLibrary):
    learner = stage(library, 1.0)
    batch = learner.batch(0, range(3))
    noise, sigma = noise_and_sigma(batch)
    drawn = drawn_anew(learner.model, batch.data, noise, sigma)
    assert not drawn.requires_grad
    assert (drawn - batch.data.context).abs().max() > 0.1
    context, ids = batch.data.context.clone(), batch.data.caption_ids.clone()
    context[:, 1:], ids[:, 1:6] = 7.0, 0
    again = drawn_anew(learner.model, batch.data._replace(context=context, caption_ids=ids), noise, sigma)
    torch.testing.assert_close(again[:, 0], drawn[:, 0])
    ids[:, 0] = 0
    other = drawn_anew(learner.model, batch.data._replace(caption_ids=ids), noise, sigma)
    assert (other[:, 0] - drawn[:, 0]).abs().max() > 1e-4


def test_almost_no_noise_keeps_a_frame_and_an_empty_place_stays_empty(library: LatentLibrary):
    learner = stage(library, 1.0)
    batch = learner.batch(0, range(3))
    noise, sigma = noise_and_sigma(batch)
    context = batch.data.context.clone()
    context[:, 2] = 0.0
    model, config = learner.model, learner.model.config
    model.config = replace(config, prediction="flow")  # its answer then counts as much as there is noise
    drawn = drawn_anew(model, batch.data._replace(context=context), noise, torch.full_like(sigma, 1e-4))
    torch.testing.assert_close(drawn, context, atol=0.01, rtol=0)
    assert not drawn[:, 2].any()


def test_steps_for_it_are_a_share_and_samples_the_same_in_any_batch(library: LatentLibrary):
    learner = stage(library, 0.3)
    drawn = [step for step in range(200) if learner.batch(step, range(1)).context_noise is not None]
    assert 40 < len(drawn) < 80
    whole, half = (noise_and_sigma(learner.batch(drawn[0], samples)) for samples in (range(4), range(2, 4)))
    for one, other in zip(whole, half, strict=True):
        assert torch.equal(one[2:], other)


def test_the_loss_is_that_of_the_frames_as_drawn(library: LatentLibrary):
    learner, plain = stage(library, 1.0), stage(library, 0.0)
    batch, usual = learner.batch(0, range(3)), plain.batch(0, range(3))
    assert usual.context_noise is None
    torch.testing.assert_close(batch.data.context, usual.data.context)
    drawn = usual._replace(
        data=usual.data._replace(context=drawn_anew(learner.model, batch.data, *noise_and_sigma(batch)))
    )
    loss, expected, clean = (next(iter(learner.losses(b, 0))).value for b in (batch, drawn, usual))
    torch.testing.assert_close(loss, expected)
    assert abs(loss - clean) > 1e-5


def test_it_must_be_a_share() -> None:
    with pytest.raises(ValueError, match="share from 0 to 1, got 2"):
        FlowConfig(own_context=2.0)
