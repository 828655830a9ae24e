"""3x3 convolutions with a quarter of the multiplications, for CPUs that are at their limit in float32.

Winograd's F(4x4, 3x3) (Lavin and Gray 2015, arXiv:1509.09308): squares of 6x6 pixels, four pixels apart, are
transformed, multiplied by transformed weights, one matrix product for each of the 36 places in a square, and
transformed back to 4x4 results. Weights are transformed once. The transforms interpolate at 0, 1, -1, 1/2, -2 and
infinity, which rounds less than the usual 2 and -2 (Barabasz et al. 2018, arXiv:1803.10986).

N pictures, C channels in, O out, H W size, R rows and K columns of squares, P places along a side, X = N * R * K * C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEP, SIDE = 4, 6
"""Results and inputs along the side of a square."""
AT_ONCE = 128
"""Squares that are worked on together, so that what becomes of them stays in the cache: six pictures of 128 channels at
24x40 take 10.6 ms two by two and 12.4 all at once."""

_INPUT = (
    (1, -3 / 2, -2, 3 / 2, 1, 0),
    (0, -1, 1 / 2, 5 / 2, 1, 0),
    (0, 1, -5 / 2, 1 / 2, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 1 / 2, -1, -1 / 2, 1, 0),
    (0, 1, -3 / 2, -2, 3 / 2, 1),
)
_WEIGHT = (
    (1, 0, 0),
    (1 / 3, 1 / 3, 1 / 3),
    (-1 / 3, 1 / 3, -1 / 3),
    (-16 / 15, -8 / 15, -4 / 15),
    (1 / 15, -2 / 15, 4 / 15),
    (0, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -2, 0),
    (0, 1, 1, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -8, 1),
)


class WinogradConv:
    """The twin of a 3x3 convolution with padding 1 and a bias, for float32 on a CPU, without gradient.

    Milliseconds of CPU time of the convolution and of its twin, one thread of an AMD EPYC with AVX2 only, channels at
    NxHxW: 256 at 3x12x20 8.1 and 5.4, 128 at 6x24x40 16.8 and 10.6, 192 at 6x12x20 9.1 and 6.0. 48 channels at 12x48x80
    19.3 and 18.4, where moving the squares takes longer than multiplying them: with these, too, a chunk of the shipped
    codec takes 3% longer (see `worth_it`).

    Holds a transformed copy of the weights, four times their size, which does not follow when they change.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        assert conv.kernel_size == (3, 3)
        assert conv.padding == (1, 1)
        assert conv.bias is not None
        outputs, channels = conv.weight.shape[:2]
        along_side = torch.tensor(_WEIGHT, dtype=torch.float64)
        weight_9X = conv.weight.detach().permute(2, 3, 1, 0).reshape(9, -1).double()
        transformed = torch.kron(along_side, along_side) @ weight_9X
        self._weight = transformed.to(conv.weight.dtype).view(SIDE * SIDE, channels, outputs)
        self._bias = conv.bias.detach()
        self._input = torch.tensor(_INPUT, dtype=conv.weight.dtype)
        self._output = torch.tensor(_OUTPUT, dtype=conv.weight.dtype)

    @staticmethod
    def worth_it(conv: nn.Conv2d) -> bool:
        """Whether this convolution's twin measured faster."""
        weight = conv.weight
        return weight.device.type == "cpu" and weight.dtype == torch.float32 and min(weight.shape[:2]) >= 128

    @staticmethod
    def fits(x_NCHW: Tensor) -> bool:
        """Whether pictures of this size can be cut into squares."""
        return x_NCHW.shape[2] % STEP == 0 and x_NCHW.shape[3] % STEP == 0

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to [N, O, H, W], channels last; H and W must be multiples of 4."""
        num, _, height, width = x_NCHW.shape
        pictures = max(1, AT_ONCE // (height // STEP * (width // STEP)))
        y_NHWO = x_NCHW.new_empty(num, height, width, len(self._bias))
        for x, y in zip(torch.split(x_NCHW, pictures), torch.split(y_NHWO, pictures), strict=True):
            self._convolve(x, y)
        return y_NHWO.permute(0, 3, 1, 2)

    def _convolve(self, x_NCHW: Tensor, y_NHWO: Tensor) -> None:
        num, _, height, width = x_NCHW.shape
        rows, columns = height // STEP, width // STEP
        x_PPX = self._input @ _along_rows(self._input, _squares(x_NCHW, rows, columns))
        y_PPX = torch.bmm(x_PPX.view(SIDE * SIDE, num * rows * columns, -1), self._weight).view(SIDE, SIDE, -1)
        y_PPX = _along_rows(self._output, self._output @ y_PPX)
        y_NRPKPO = y_PPX.view(STEP, STEP, num, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
        torch.add(y_NRPKPO, self._bias, out=y_NHWO.view(y_NRPKPO.shape))


def _squares(x_NCHW: Tensor, rows: int, columns: int) -> Tensor:
    """[P, P, X]: place by place, what lies there in each square."""
    num, channels = x_NCHW.shape[:2]
    padded_NHWC = F.pad(x_NCHW.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    picture, row, column, channel = padded_NHWC.stride()
    overlapping = padded_NHWC.as_strided(
        (SIDE, SIDE, num, rows, columns, channels), (row, column, picture, STEP * row, STEP * column, channel)
    )
    return overlapping.reshape(SIDE, SIDE, -1)


def _along_rows(matrix: Tensor, x_PPX: Tensor) -> Tensor:
    """Apply a transform to the first axis; the second one's is a plain matrix product."""
    return (matrix @ x_PPX.flatten(1)).view(-1, *x_PPX.shape[1:])
