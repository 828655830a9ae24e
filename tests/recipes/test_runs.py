"""Starting a stage from weights for fewer latent channels."""

from __future__ import annotations

import pytest
import torch

from shotstream.models.attention import SegmentAttention
from shotstream.models.dit import DiT
from shotstream.recipes.runs import widened


def predict(model: DiT, latents: torch.Tensor) -> torch.Tensor:
    captions = model.encode_captions(torch.ones(1, 5, 8))
    zeros = torch.zeros(1, latents.shape[1])
    return model(
        latents,
        zeros,
        positions_BF=zeros,
        shot_ids_BF=zeros,
        captions=captions,
        caption_ids_BF=zeros.long(),
        attention=SegmentAttention(sizes=(latents.shape[1],), tokens_per_frame=4),
    )


@torch.no_grad()
def test_new_channels_leave_the_old_ones_alone(tiny_dit: DiT) -> None:
    latents = torch.randn(1, 2, 4, 4, 4)
    more = torch.cat([latents, torch.randn(1, 2, 3, 4, 4)], dim=2)
    wide = predict(widened(tiny_dit, 7), more)
    torch.testing.assert_close(wide[:, :, :4], predict(tiny_dit, latents), atol=1e-5, rtol=0)
    assert wide[:, :, 4:].abs().max() == 0


def test_fewer_channels_are_refused(tiny_dit: DiT) -> None:
    with pytest.raises(ValueError, match="4-channel latents, the data has 3"):
        widened(tiny_dit, 3)
