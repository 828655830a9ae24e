"""Training of a tiny codec: reconstruction on crops, then on full frames; time-boxed and resumable.

The learning rate follows the share of the time budget that is spent, so a run ends when it was meant to, however busy
the machine is. Batches and noise depend on (seed, step) alone; elapsed time, weights, optimiser and averaged weights
are in the checkpoint.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from shotstream.models.codec import from_uint8
from shotstream.models.tiny_codec import Down, TinyCodec, TinyCodecConfig, Up
from shotstream.training.codec_data import (
    BatchMaker,
    ClipSource,
    CodecBatch,
    CodecDataConfig,
    SourceClip,
    box_mask,
    motion_mask,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CodecTrainConfig:
    """One run, resolved; saved with every checkpoint."""

    codec: TinyCodecConfig = field(default_factory=TinyCodecConfig)
    data: CodecDataConfig = field(default_factory=CodecDataConfig)
    minutes: float = 45.0
    seed: int = 0
    learning_rate: float = 1e-3
    final_learning_rate: float = 4e-5
    warmup_steps: int = 40
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0
    ema_decay: float = 0.998
    edge_weight: float = 0.5
    """Of the difference of neighbouring pixels' differences, beside the plain absolute error."""
    square_weight: float = 1.0
    latent_penalty: float = 1e-6
    latent_noise: float = 0.2
    """Largest sd, in units of each channel's own, of the noise put on latents before decoding."""
    clean_share: float = 0.25
    """Share of clips whose latents get no noise."""
    full_frame_share: float = 0.12
    """Last share of the time in which nothing is cropped: group norm sees other statistics in crops."""
    freeze_encoder: bool = False
    evaluate_minutes: float = 5.0
    checkpoint_minutes: float = 3.0
    evaluation_clips: int = 8
    evaluation_frames: int = 17

    def __post_init__(self) -> None:
        stride = self.codec.spatial_stride
        bad = [side for side in self.data.crop_sides if side % stride]
        if bad or self.minutes <= 0:
            raise ValueError(f"crop sides {bad} must be multiples of {stride}, and minutes positive ({self.minutes})")

    def learning_rate_at(self, progress: float, step: int) -> float:
        """Cosine over the time spent (progress in [0, 1]) with a short linear start."""
        span = self.learning_rate - self.final_learning_rate
        cosine = self.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return cosine * min(1.0, (step + 1) / self.warmup_steps)


class CodecTrainer:
    """Holds everything a run needs to go on: `run()` until the time is spent."""

    def __init__(self, config: CodecTrainConfig, source: ClipSource, heldout: ClipSource, out: Path) -> None:
        torch.manual_seed(config.seed)
        self.config, self.source, self.heldout, self.out = config, source, heldout, out
        self.codec = TinyCodec(config.codec)
        self.ema = copy.deepcopy(self.codec).requires_grad_(False)
        if config.freeze_encoder:
            self.codec.encoder.requires_grad_(False)
        trainable = [p for p in self.codec.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trainable, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        # Running statistics of the raw latents, for noise in units of each channel's sd.
        self.latent_mean = self.codec.latent_mean.clone()
        self.latent_variance = self.codec.latent_sd.square()
        self.batches = BatchMaker(source, config.data, config.seed)
        self.step, self.elapsed_s = 0, 0.0
        self.history: list[dict[str, float]] = []

    # -- state ---------------------------------------------------------------------------------------------------------

    def start_from(self, codec: TinyCodec) -> None:
        """Begin with given weights and latent statistics (their shapes must be those of this run's codec)."""
        for mine in (self.codec, self.ema):
            mine.load_state_dict(codec.state_dict())
            mine.set_latent_statistics(codec.latent_mean, codec.latent_sd)
        self.latent_mean, self.latent_variance = codec.latent_mean.clone(), codec.latent_sd.square()

    def start_fresh(self) -> None:
        """Begin from scratch, as a linear codec fitted to the source."""
        start_linear(self.codec, self.source)
        self.ema.load_state_dict(self.codec.state_dict())

    def save(self) -> None:
        state: dict[str, Any] = {
            "codec": self.codec.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "latent_mean": self.latent_mean,
            "latent_variance": self.latent_variance,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "history": self.history,
            "config": json.dumps(asdict(self.config)),
        }
        path = self.out / "checkpoint.pt"
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def resume(self) -> bool:
        """Go on from the folder's checkpoint; False when there is none."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.codec.load_state_dict(state["codec"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.latent_mean, self.latent_variance = state["latent_mean"], state["latent_variance"]
        self.step, self.elapsed_s, self.history = state["step"], state["elapsed_s"], state["history"]
        return True

    # -- one step ------------------------------------------------------------------------------------------------------

    def loss(self, batch: CodecBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Weighted absolute, squared and edge error of decode(encode(pixels) + noise), and a pull on the latents."""
        config, size = self.config, batch.pixels.shape[0]
        with torch.autocast("cpu", torch.bfloat16):
            raw_BFCHW = self.codec.encoder(batch.pixels, self.codec.new_encoder_state(size)).float()
            self._track_statistics(raw_BFCHW.detach())
            noisy_BFCHW = raw_BFCHW + self._latent_noise(raw_BFCHW, generator)
            drawn_BTCHW = self.codec.decoder(noisy_BFCHW, self.codec.new_decoder_state(size))
        error_BTCHW = drawn_BTCHW - batch.pixels
        weight = batch.weight / batch.weight.mean()
        absolute = (error_BTCHW.abs() * weight).mean()
        square = (error_BTCHW.square() * weight).mean()
        edge = _edge_error(error_BTCHW, weight)
        total = absolute + config.edge_weight * edge + config.square_weight * square
        total = total + config.latent_penalty * raw_BFCHW.square().mean()
        return total, {"l1": absolute.item(), "mse": square.item(), "edge": edge.item()}

    def train_step(self) -> dict[str, float]:
        config = self.config
        progress = self.elapsed_s / (60 * config.minutes)
        full_frames = progress > 1 - config.full_frame_share
        batch = self.batches.batch(self.step, full_frames=full_frames)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        total, parts = self.loss(batch, generator)
        total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), config.gradient_clip)
        rate = config.learning_rate_at(progress, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._average_weights()
        self.step += 1
        return {"loss": total.item(), **parts, "grad_norm": float(norm), "lr": rate}

    def _track_statistics(self, raw_BFCHW: Tensor) -> None:
        moved = 0.02 if self.step > 50 else 0.2
        variance, mean = torch.var_mean(raw_BFCHW, dim=(0, 1, 3, 4))
        self.latent_mean.lerp_(mean, moved)
        self.latent_variance.lerp_(variance, moved)

    def _latent_noise(self, raw_BFCHW: Tensor, generator: torch.Generator) -> Tensor:
        level_B = torch.rand(raw_BFCHW.shape[0], generator=generator) * self.config.latent_noise
        level_B *= torch.rand(raw_BFCHW.shape[0], generator=generator) >= self.config.clean_share
        noise = torch.randn(raw_BFCHW.shape, generator=generator)
        return noise * self.latent_variance.sqrt().view(-1, 1, 1) * level_B.view(-1, 1, 1, 1, 1)

    def _average_weights(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for slow, fast in zip(self.ema.parameters(), self.codec.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)

    # -- the whole run -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until `minutes` of training time are spent; saves, evaluates and writes STATUS.md on the way."""
        budget_s = 60 * self.config.minutes
        self.out.mkdir(parents=True, exist_ok=True)
        saved_s = evaluated_s = self.elapsed_s
        window: list[dict[str, float]] = []
        while self.elapsed_s < budget_s:
            begun = time.perf_counter()
            window.append(self.train_step())
            self.elapsed_s += time.perf_counter() - begun
            if self.step % 50 == 0:
                self._report(window)
                window = []
            if self.elapsed_s - saved_s > 60 * self.config.checkpoint_minutes:
                self.save()
                saved_s = self.elapsed_s
            if self.elapsed_s - evaluated_s > 60 * self.config.evaluate_minutes:
                self.evaluate()
                evaluated_s = self.elapsed_s
        self.save()
        self.evaluate()

    def _report(self, window: list[dict[str, float]]) -> None:
        means = {name: sum(w[name] for w in window) / len(window) for name in window[0]}
        rate = self.step / max(self.elapsed_s, 1e-9)
        line = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        log.info(
            "step %d  %.1f of %g min  %.2f steps/s  %s", self.step, self.elapsed_s / 60, self.config.minutes, rate, line
        )

    def evaluate(self) -> dict[str, float]:
        """Held-out quality of the averaged weights; appends to history, writes a picture and STATUS.md."""
        clips = heldout_clips(self.heldout, self.config.evaluation_clips, self.config.evaluation_frames)
        result, pairs = measure(self.ema.eval(), clips)
        result |= {"step": self.step, "minutes": self.elapsed_s / 60}
        self.history.append(result)
        write_grid(pairs, self.out / f"grid_{self.step:06d}.png")
        left = max(0.0, self.config.minutes - self.elapsed_s / 60)
        lines = "\n".join(json.dumps({k: round(v, 3) for k, v in row.items()}) for row in self.history)
        (self.out / "STATUS.md").write_text(f"{left:.1f} training minutes left of {self.config.minutes:g}\n\n{lines}\n")
        log.info("evaluation %s", json.dumps({k: round(v, 3) for k, v in result.items()}))
        return result


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


def heldout_clips(source: ClipSource, count: int, num_frames: int) -> list[SourceClip]:
    """The same clips every time."""
    return [source.clip(np.random.default_rng((77, index)), num_frames) for index in range(count)]


@torch.no_grad()
def measure(
    codec: TinyCodec, clips: list[SourceClip]
) -> tuple[dict[str, float], list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]]:
    """PSNR in dB (of squared errors pooled over all clips, uint8 steps) of whole clips, face and mark boxes, motion.

    `motion` counts only pixels that changed by more than 8 levels since the frame before. Returns pairs
    (truth, decoded) of uint8 frames [T, H, W, 3] as well.
    """
    pooled: dict[str, list[float]] = {name: [0.0, 0.0] for name in ("clip", "face", "mark", "motion", "lone")}
    per_clip, pairs = [], []
    for clip in clips:
        pixels = from_uint8(torch.from_numpy(clip.frames)[None])
        with torch.autocast("cpu", torch.bfloat16):
            drawn = codec.decode_chunk(codec.encode(pixels), codec.new_decoder_state())[0].numpy()
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
            pooled[name][0] += float(square_THW[mask].sum())
            pooled[name][1] += float(mask.sum())
        per_clip.append(_psnr(float(square_THW.mean())))
        pairs.append((clip.frames, drawn))
    result = {f"psnr_{name}": _psnr(total / count) for name, (total, count) in pooled.items() if count}
    result |= {"psnr_clip_mean": float(np.mean(per_clip)), "psnr_clip_worst": min(per_clip)}
    return result, pairs


def _psnr(mean_square: float) -> float:
    return 10 * math.log10(255**2 / max(mean_square, 1e-6))


def write_grid(pairs: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]], path: Path) -> None:
    """One column per clip: truth above the decoded frame, of the clip's middle and of its end."""
    columns = []
    for truth, drawn in pairs[:8]:
        middle, end = len(truth) // 2, len(truth) - 1
        columns.append(np.concatenate([truth[middle], drawn[middle], truth[end], drawn[end]], axis=0))
    rows = [np.concatenate(columns[i : i + 4], axis=1) for i in range(0, len(columns), 4)]
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)


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
        pixels = from_uint8(torch.from_numpy(clip.frames)[None])
        raw.append(codec.denormalise(codec.encode(pixels)).flatten(0, 1))
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


def _set_linear(weight: Tensor, value: Tensor) -> None:
    """Overwrite the corner of a weight that `value` covers; what is left keeps a tenth of its random start."""
    weight.mul_(0.1)
    rows, columns = min(weight.shape[0], value.shape[0]), min(weight.shape[1], value.shape[1])
    weight[:rows] = 0
    weight[:rows, :columns] = value[:rows, :columns]
