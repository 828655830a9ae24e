"""The fast twin of a 3x3 convolution is that convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shotstream.models.winograd import WinogradConv


def conv_of(channels: int, outputs: int) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, outputs, 3, padding=1).requires_grad_(False)


def pictures(num: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(num, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("num", "height", "width"), [(1, 4, 4), (1, 12, 20), (3, 8, 4)])
def test_fast_equals_plain(num: int, height: int, width: int) -> None:
    conv, x = conv_of(24, 16), pictures(num, 24, height, width)
    for layout in (torch.contiguous_format, torch.channels_last):
        fast = WinogradConv(conv)(x.contiguous(memory_format=layout))
        torch.testing.assert_close(fast, conv(x), atol=1e-5, rtol=0)
        assert fast.is_contiguous(memory_format=torch.channels_last)


def test_fast_is_exact_to_a_millionth_at_the_width_that_ships() -> None:
    """The largest of 61,440 errors depends on the order in which a CPU adds; a wrong point or transform gives 0.1."""
    conv, x = conv_of(256, 256), pictures(1, 256, 12, 20)
    error = WinogradConv(conv)(x) - conv.double()(x.double())
    assert error.square().mean().sqrt() < 2e-6
    assert error.abs().max() < 2e-5


def test_a_convolution_has_a_twin_where_it_is_wide_and_in_float32() -> None:
    assert WinogradConv.worth_it(conv_of(128, 128))
    assert not WinogradConv.worth_it(conv_of(48, 48))
    assert not WinogradConv.worth_it(conv_of(128, 128).bfloat16())
    assert WinogradConv.fits(pictures(1, 1, 12, 20))
    assert not WinogradConv.fits(pictures(1, 1, 12, 18))
