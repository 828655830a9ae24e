"""Training of a tiny codec: reconstruction on crops, then on whole frames, and what it is worth afterwards.

B batch, N crops, T pixel frames, F latent frames, C channels, H W pixels, h w latent cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from shotstream.engine.loading import default_dtype
from shotstream.models.codec import from_uint8
from shotstream.models.tiny_codec import Down, TinyCodec, Up
from shotstream.training.codec_data import ClipSource, CropSampler, SourceClip, box_mask, motion_mask
from shotstream.training.randomness import generator_at, normal
from shotstream.training.trainer import Loss
from shotstream.training.watch import Watched

Pair = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
"""Frames of a clip and what the codec makes of them, [T, H, W, 3] each."""

MEASURED_CROPS, MEASURED_FRAMES = 16, 5
"""On how much the latents' sizes are measured while training."""
WATCHED, TESTED = 77, 78
"""Seeds of the held-out clips that a run is watched by, and of those that its end is judged by."""
ENOUGH_CLIPS = 8
"""Fewer have no interval."""
SHOWN = 8
"""Of so many clips pictures are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecLossConfig:
    """What a codec is asked for."""

    edge_weight: float = 0.5
    """Of the difference of neighbouring pixels' differences, beside the plain absolute error."""
    square_weight: float = 1.0
    latent_penalty: float = 1e-6
    latent_noise: float = 0.2
    """Largest sd, in units of each channel's own, of the noise put on latents before decoding."""
    clean_share: float = 0.25
    """Share of crops whose latents get no noise."""
    measure_every: int = 50
    """Steps between two measurements of each channel's sd."""


class NoisyCodec(nn.Module):
    """A codec as it is trained: with noise on the latents between its halves."""

    latent_sd: Tensor
    """[C] of the raw latents as they are now; in the state dict, so that a run goes on with it."""

    def __init__(self, codec: TinyCodec) -> None:
        super().__init__()
        self.codec = codec
        self.register_buffer("latent_sd", codec.latent_sd.float().clone())

    def forward(self, pixels_NTCHW: Tensor, noise_NFCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels drawn [N, T, 3, H, W], not clamped, and raw latents [N, F, C, h, w], both float32.

        The noise is in units of each channel's sd.
        """
        raw = self.encode(pixels_NTCHW)
        noisy = raw + noise_NFCHW * self.latent_sd.view(-1, 1, 1)
        return self.codec.decoder(noisy, self.codec.new_decoder_state(len(noisy))), raw

    def encode(self, pixels_NTCHW: Tensor) -> Tensor:
        raw: Tensor = self.codec.encoder(pixels_NTCHW, self.codec.new_encoder_state(len(pixels_NTCHW)))
        return raw.float()


class NoisyCrops(NamedTuple):
    """Crops with the noise their latents get."""

    pixels: Tensor
    """[N, T, 3, H, W]."""
    weight: Tensor
    """[N, T, 1, H, W]."""
    noise: Tensor
    """[N, F, C, h, w], in units of each channel's sd."""


class CodecStage:
    """Reconstruction through noisy latents, of crops and at the end of whole frames."""

    def __init__(
        self,
        codec: TinyCodec,
        sampler: CropSampler,
        config: CodecLossConfig,
        device: torch.device,
        *,
        crop_steps: int,
        seed: int = 0,
    ) -> None:
        """From step `crop_steps` on nothing is cropped. Parameters that need no gradient stay as they are."""
        self.model = NoisyCodec(codec)
        self.networks: Mapping[str, nn.Module] = {"model": self.model}
        self.sampler, self.config, self.device = sampler, config, device
        self.crop_steps, self.seed = crop_steps, seed
        fixed = sampler.fixed(MEASURED_CROPS, MEASURED_FRAMES)
        self._measured_on = fixed.pixels.to(device)
        # A constant instead of each batch's own mean, so that no sample's loss depends on its neighbours.
        self._mean_weight = fixed.weight.mean().item()

    def turn(self, step: int) -> str:
        return "model"

    def batch(self, step: int, samples: range) -> NoisyCrops:
        crops = self.sampler.batch(step, samples, cropped=step < self.crop_steps)
        codec, (count, num_frames, _, height, width) = self.model.codec, crops.pixels.shape
        grid = (height // codec.spatial_stride, width // codec.spatial_stride)
        latent = (1 + (num_frames - 1) // codec.temporal_stride, codec.latent_channels, *grid)
        noise = torch.cat([self._noise(step, sample, (count // len(samples), *latent)) for sample in samples])
        return NoisyCrops(*(t.to(self.device) for t in (*crops, noise)))

    def losses(self, batch: NoisyCrops, step: int) -> Iterator[Loss]:
        """Weighted absolute, squared and edge error of what is drawn, and a pull on the latents."""
        config = self.config
        if step % config.measure_every == 0:
            self._measure_latents()
        drawn, raw = self.model(batch.pixels, batch.noise)
        error, weight = drawn - batch.pixels, batch.weight / self._mean_weight
        absolute, square = (error.abs() * weight).mean(), (error.square() * weight).mean()
        edge = _edge_error(error, weight)
        total = absolute + config.edge_weight * edge + config.square_weight * square
        total = total + config.latent_penalty * raw.square().mean()
        yield Loss(total, {"l1": absolute.detach(), "mse": square.detach(), "edge": edge.detach()})

    def carried(self) -> dict[str, Tensor]:
        return {}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        """Nothing is carried from step to step but the network's own sd."""

    def pictures(self, step: int) -> dict[str, np.ndarray]:
        return {}

    def _noise(self, step: int, sample: int, shape: tuple[int, ...]) -> Tensor:
        """Noise of a random size for each of a sample's crops, for some none."""
        rng = generator_at(self.seed, "latent noise", step, sample)
        level = rng.uniform(0, self.config.latent_noise, shape[0])
        level *= rng.random(shape[0]) >= self.config.clean_share
        return normal(rng, shape) * torch.from_numpy(level).float().view(-1, 1, 1, 1, 1)

    @torch.no_grad()
    def _measure_latents(self) -> None:
        """From fixed crops, hence a function of the weights alone: the same in every process and micro-batch."""
        self.model.latent_sd.copy_(self.model.encode(self._measured_on).std((0, 1, 3, 4)))


@dataclass
class CodecWatch:
    """Looks at a run while it trains: quality on held-out clips, and frames of them beside what is drawn."""

    model: NoisyCodec
    heldout: ClipSource
    num_clips: int = 8
    num_frames: int = 17

    def __call__(self) -> Watched:
        codec = deepcopy(self.model.codec).to(default_dtype(self.model.codec.device))
        scores, pairs = measure(codec, self._clips)
        return Watched({"truth above drawn": side_by_side(pairs)}, scores)

    @cached_property
    def _clips(self) -> list[SourceClip]:
        return heldout_clips(self.heldout, self.num_clips, self.num_frames)


@torch.no_grad()
def widened(codec: TinyCodec, channels: int) -> TinyCodec:
    """The same codec with more latent channels: it decodes as before, and training fills the new ones.

    New channels start as small random views of the encoder's features that the decoder does not look at yet.
    Raises ValueError when `channels` is fewer than the codec has.
    """
    old = codec.latent_channels
    if channels < old:
        raise ValueError(f"a codec of {old} latent channels cannot be widened to {channels}")
    config = replace(codec.config, latent_channels=channels, latent_mean=(), latent_sd=())
    wide = TinyCodec(config)
    weights = dict(codec.state_dict())
    start = wide.encoder.last.weight.clone()
    start[:old] = weights["encoder.last.weight"]
    weights["encoder.last.weight"] = start
    weights["encoder.last.bias"] = F.pad(weights["encoder.last.bias"], (0, channels - old))
    weights["decoder.first.weight"] = F.pad(weights["decoder.first.weight"], (0, 0, 0, 0, 0, channels - old))
    wide.load_state_dict(weights)
    mean = F.pad(codec.latent_mean.float(), (0, channels - old))
    wide.set_latent_statistics(mean, F.pad(codec.latent_sd.float(), (0, channels - old), value=1.0))
    return wide


def _edge_error(error_BTCHW: Tensor, weight: Tensor) -> Tensor:
    across = (error_BTCHW.diff(dim=-1).abs() * weight[..., 1:]).mean()
    down = (error_BTCHW.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return across + down


def heldout_clips(source: ClipSource, count: int, num_frames: int, *, seed: int = WATCHED) -> list[SourceClip]:
    """The same clips every time; `seed` `TESTED` for those that no decision about a run looks at."""
    return [source.clip(np.random.default_rng((seed, index)), num_frames) for index in range(count)]


@torch.no_grad()
def measure(codec: TinyCodec, clips: Sequence[SourceClip]) -> tuple[dict[str, float], list[Pair]]:
    """PSNR in dB (of squared errors pooled over all clips, uint8 steps) of whole clips, face and mark boxes, motion.

    `motion` counts only pixels that changed by more than 8 levels since the frame before. Of eight clips or more each
    has a 95% interval over clips (`…_low`, `…_high`). Returns pairs (truth, decoded) of uint8 frames [T, H, W, 3] of
    the first eight as well. Runs where the codec is, in its dtype.
    """
    pooled: dict[str, list[tuple[float, float]]] = {name: [] for name in ("clip", "face", "mark", "motion", "lone")}
    per_clip: list[float] = []
    pairs: list[Pair] = []
    for clip in clips:
        drawn = codec.decode_chunk(codec.encode(_pixels(clip, codec)), codec.new_decoder_state())[0].cpu().numpy()
        square_THW = (drawn.astype(np.float32) - clip.frames.astype(np.float32)).__pow__(2).mean(-1)
        height, width = square_THW.shape[1:]
        moved_THW = motion_mask(clip.frames, 8)
        masks = {
            "clip": np.ones_like(moved_THW),
            "face": box_mask(clip.faces, height, width),
            "mark": box_mask(clip.marks, height, width),
            "motion": moved_THW,
            "lone": np.arange(len(square_THW))[:, None, None] + np.zeros_like(moved_THW) == 0,
        }
        for name, mask in masks.items():
            pooled[name].append((float(square_THW[mask].sum()), float(mask.sum())))
        per_clip.append(_psnr(float(square_THW.mean())))
        if len(pairs) < SHOWN:
            pairs.append((clip.frames, drawn))
    result: dict[str, float] = {}
    for name, sums in pooled.items():
        result |= _pooled_psnr(f"psnr_{name}", np.asarray(sums))
    result |= {"psnr_clip_mean": float(np.mean(per_clip)), "psnr_clip_worst": min(per_clip)}
    return result, pairs


def _pooled_psnr(name: str, sums_N2: npt.NDArray[np.float64]) -> dict[str, float]:
    """Of summed squares and counts of N clips, with an interval where there are enough clips for one."""
    total, count = sums_N2.sum(0)
    if not count:
        return {}
    found = {name: _psnr(total / count)}
    if len(sums_N2) >= ENOUGH_CLIPS:
        drawn = np.random.default_rng(0).integers(len(sums_N2), size=(1000, len(sums_N2)))
        totals, counts = sums_N2[drawn].sum(1).T
        likely = [_psnr(mean) for mean in totals[counts > 0] / counts[counts > 0]]
        found |= {f"{name}_{end}": float(np.quantile(likely, q)) for end, q in (("low", 0.025), ("high", 0.975))}
    return found


def _pixels(clip: SourceClip, codec: TinyCodec) -> Tensor:
    """A clip where the codec is, [1, T, 3, H, W]."""
    return from_uint8(torch.from_numpy(clip.frames)[None]).to(codec.device)


def _psnr(mean_square: float) -> float:
    return 10 * math.log10(255**2 / max(mean_square, 1e-6))


def side_by_side(pairs: Sequence[Pair]) -> npt.NDArray[np.uint8]:
    """One picture, a column per clip: truth above the decoded frame, of the clip's middle and of its end."""
    columns = []
    for truth, drawn in pairs[:SHOWN]:
        middle, end = len(truth) // 2, len(truth) - 1
        columns.append(np.concatenate([truth[middle], drawn[middle], truth[end], drawn[end]], axis=0))
    rows = [np.concatenate(columns[i : i + 4], axis=1) for i in range(0, len(columns), 4)]
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return np.concatenate(rows, axis=0)


@torch.no_grad()
def latent_statistics(
    codec: TinyCodec, source: ClipSource, *, clips: int, num_frames: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Mean of every channel of the raw latents over random clips, and one scale for all of them, [C] each.

    Channels keep their sizes relative to one another: shape and colour then stand out of the noise before fine detail
    does, so that a generator decides them first. Scaled alike, as many an autoencoder's are, all come at once, and a
    small network draws mosaics. First frames are counted as often as all later ones.
    """
    raw = []
    for index in range(clips):
        clip = source.clip(np.random.default_rng((seed, index)), num_frames)
        raw.append(codec.denormalise(codec.encode(_pixels(clip, codec))).flatten(0, 1))
    raw_NCHW = torch.cat(raw)
    variance, mean = torch.var_mean(raw_NCHW, dim=(0, 2, 3))
    return mean, variance.mean().sqrt().expand_as(mean).clone()


@torch.no_grad()
def start_linear(codec: TinyCodec, source: ClipSource, *, clips: int = 48, num_frames: int = 5, seed: int = 9) -> None:
    """Make the untrained codec a good linear one, in place: principal components at every step down, undone going up.

    Blocks start as the identity, so what is left between them is linear; each step down keeps the directions that hold
    the most energy of what reaches it, at unit mean square, and the decoder starts as the transpose. The codec then
    begins at the quality of a block transform instead of at a grey picture.
    """
    pixels = [source.clip(np.random.default_rng((seed, index)), num_frames).frames for index in range(clips)]
    x_BTHWC = torch.from_numpy(np.stack(pixels)).float() / 127.5 - 1
    encoder, decoder, patch = codec.encoder, codec.decoder, codec.config.patch
    x_BTHWC = rearrange(x_BTHWC, "b t (h p) (w q) c -> b t h w (c p q)", p=patch, q=patch)
    x_BTHWC, basis, scale = _principal(x_BTHWC, encoder.first.out_channels)
    _set_linear(encoder.first.weight[:, :, 1, 1], basis.T / scale)
    _set_linear(decoder.last.weight[:, :, 1, 1], basis * scale)
    for down, up in zip(encoder.downs, reversed(decoder.ups), strict=True):
        assert isinstance(down, Down)
        assert isinstance(up, Up)
        x_BTHWC = torch.cat([x_BTHWC[:, :1], x_BTHWC], dim=1)
        x_BTHWC = rearrange(x_BTHWC, "b (t s) (h p) (w q) c -> b t h w (s p q c)", s=2, p=2, q=2)
        x_BTHWC, basis, scale = _principal(x_BTHWC, down.project.out_features)
        basis = _in_place(basis, down.project.in_features)
        _set_linear(down.project.weight, basis.T / scale)
        _set_linear(up.project.weight, basis * scale)
    _, basis, scale = _principal(x_BTHWC, codec.latent_channels)
    _set_linear(encoder.last.weight[:, :, 1, 1], basis.T / scale)
    _set_linear(decoder.first.weight[:, :, 1, 1], basis * scale)


def _principal(x: Tensor, width: int) -> tuple[Tensor, Tensor, float]:
    """x projected on its strongest directions and scaled to unit mean square, the directions [C, width], the scale."""
    rows = x.flatten(0, -2)
    _, directions = torch.linalg.eigh(rows.T @ rows)
    basis = directions.flip(-1)[:, :width]
    projected = x @ basis
    scale = projected.square().mean().sqrt().item()
    return projected / scale, basis, scale


def _in_place(basis: Tensor, features: int) -> Tensor:
    """Directions in 2 x 2 x 2 squares of a few channels as directions in squares of more, whose others stay zero.

    Small patches have fewer values than the first layer has channels, and a layer finds a channel by its place.
    """
    channels = features // 8
    wide_SCW = F.pad(rearrange(basis, "(s c) w -> s c w", s=8), (0, 0, 0, channels - basis.shape[0] // 8))
    return wide_SCW.flatten(0, 1)


def _set_linear(weight: Tensor, value: Tensor) -> None:
    """Overwrite the corner of a weight that `value` covers; what is left keeps a tenth of its random start."""
    weight.mul_(0.1)
    rows, columns = min(weight.shape[0], value.shape[0]), min(weight.shape[1], value.shape[1])
    weight[:rows] = 0
    weight[:rows, :columns] = value[:rows, :columns]
