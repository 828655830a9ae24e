"""The diffusion transformer: one network for teacher and student, with the parameter names of Wan2.1.

Teacher and student differ only in which keys a query reads, and that lives in the `SelfAttention` object passed to the
forward pass (models/attention.py, engine/cache.py). Mathematics as in Wan2.1 (arXiv:2503.20314) with one timestep per
latent frame and one caption per latent frame.

B batch, F latent frames, P tokens a frame, L = F * P tokens, C latent channels, h w latent size, E model width,
N heads, D head width, S captions, T caption tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from shotstream.diffusion.flow import Prediction
from shotstream.models.attention import SelfAttention, attend
from shotstream.models.rope import Rotary, rotary_table, rotate


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Shape of the network. Field names follow the roles, official config names are mapped in checkpoint.py."""

    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    """Width of the sinusoidal timestep features."""
    eps: float = 1e-6
    theta: float = 1 / 6
    """Phase of the shot indicator, radians per shot."""
    gelu: Literal["tanh", "none"] = "tanh"
    """Approximation of the FFN's activation. Wan has "tanh"; "none" (erf) is five times faster on a CPU in bf16."""
    absolute_positions: bool = False
    """Add fixed sine features of row and column to the tokens. Rotary positions alone cannot tell the top of a noisy
    picture from its bottom, which a small network trained from scratch pays for dearly. Wan has none."""
    prediction: Prediction = "flow"
    """What the output means: the velocity, or the clean latent."""
    opening_embedding: bool = False
    """Add a learnt vector to the tokens of a shot's first chunk. Only for comparison with the shot indicator."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"dim {self.dim} must split into {self.num_heads} heads of even width")
        if self.patch_size[0] != 1:
            raise ValueError(f"patches span one latent frame: patch_size must be (1, h, w), got {self.patch_size}")
        if self.prediction not in ("flow", "clean"):
            raise ValueError(f'prediction must be "flow" or "clean", got {self.prediction!r}')

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of a latent of this size. Raises ValueError if patches do not fit."""
        _, patch_h, patch_w = self.patch_size
        if height % patch_h or width % patch_w:
            raise ValueError(f"latent {height}x{width} is not a multiple of the patch {patch_h}x{patch_w}")
        return height // patch_h, width // patch_w


class TimeEmbedding(NamedTuple):
    """What the blocks and the head are modulated by, float32."""

    head: Tensor
    """[B, F, E]."""
    blocks: Tensor
    """[B, F, 6, E]: shift, scale, gate of attention, then of the FFN."""


class CaptionKV(NamedTuple):
    """Cross-attention keys and values of captions, computed once per caption. One entry per layer."""

    keys: tuple[Tensor, ...]
    """Each [S, N, T, D]."""
    values: tuple[Tensor, ...]

    def select(self, ids: Tensor) -> CaptionKV:
        """One caption per row: ids [R] int64 -> [R, N, T, D]."""
        return CaptionKV(tuple(k[ids] for k in self.keys), tuple(v[ids] for v in self.values))

    @staticmethod
    def stack(captions: list[CaptionKV]) -> CaptionKV:
        """Put the captions of several sets behind one another."""
        layers = range(len(captions[0].keys))
        return CaptionKV(
            tuple(torch.cat([c.keys[i] for c in captions]) for i in layers),
            tuple(torch.cat([c.values[i] for c in captions]) for i in layers),
        )


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, reduced in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return normed.to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Projections of self- or cross-attention. Query and key norms act on the full width, before the split in heads."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def queries(self, x_BLE: Tensor) -> Tensor:
        """[B, L, N, D]."""
        return self._heads(self.norm_q(self.q(x_BLE)))

    def keys(self, x_BLE: Tensor) -> Tensor:
        """[B, L, N, D]."""
        return self._heads(self.norm_k(self.k(x_BLE)))

    def values(self, x_BLE: Tensor) -> Tensor:
        """[B, L, N, D]."""
        return self._heads(self.v(x_BLE))

    def output(self, x_BNLD: Tensor) -> Tensor:
        """[B, L, E]."""
        y: Tensor = self.o(x_BNLD.transpose(1, 2).flatten(2))
        return y

    def _heads(self, x_BLE: Tensor) -> Tensor:
        return x_BLE.view(*x_BLE.shape[:-1], self.num_heads, -1)


class FusedQKV:
    """The serving twin of an `Attention`'s three projections: one matrix product, and one norm for queries and keys.

    Holds no weights of its own: the module's parameters become views of its tensors, so both always agree.
    """

    def __init__(self, attention: Attention) -> None:
        projections = (attention.q, attention.k, attention.v)
        self._num_heads, self._eps = attention.num_heads, attention.norm_q.eps
        self._weight = torch.cat([p.weight.data for p in projections])
        self._bias = torch.cat([p.bias.data for p in projections])
        self._norm = torch.stack([attention.norm_q.weight.data, attention.norm_k.weight.data])
        for i, projection in enumerate(projections):
            projection.weight.data = self._weight.chunk(3)[i]
            projection.bias.data = self._bias.chunk(3)[i]
        attention.norm_q.weight.data, attention.norm_k.weight.data = self._norm.unbind()

    def __call__(self, h_BLE: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each [B, L, N, D]."""
        batch, length, width = h_BLE.shape
        qkv_BL3E = F.linear(h_BLE, self._weight, self._bias).view(batch, length, 3, width)
        normed = F.rms_norm(qkv_BL3E[:, :, :2].float(), (width,), eps=self._eps).to(h_BLE.dtype) * self._norm
        q, k = rotate(normed.view(batch, length, 2 * self._num_heads, -1), rotary).chunk(2, dim=2)
        return q, k, qkv_BL3E[:, :, 2].view(batch, length, self._num_heads, -1)


class Block(nn.Module):
    """Self-attention, caption cross-attention, FFN; the first and last modulated by the frame's timestep."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.self_attn = Attention(config)
        self.cross_attn = Attention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate=config.gelu),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / math.sqrt(config.dim))
        self.fused_qkv: FusedQKV | None = None

    def forward(
        self,
        layer: int,
        x_BFPE: Tensor,
        time_BF6E: Tensor,
        rotary: Rotary,
        caption_k: Tensor,
        caption_v: Tensor,
        attention: SelfAttention,
    ) -> Tensor:
        """caption_k and caption_v are [R, N, T, D] with R = B (one caption a row) or B * F (one a frame)."""
        m = self._modulation(time_BF6E, x_BFPE.dtype)
        q, k, v = self._qkv(self._modulated(x_BFPE, m[0], m[1]), rotary)
        mixed = self.self_attn.output(attention(layer, q, k, v))
        x_BFPE = x_BFPE + m[2] * mixed.view_as(x_BFPE)
        x_BFPE = x_BFPE + self._read_captions(x_BFPE, caption_k, caption_v)
        y: Tensor = self.ffn(self._modulated(x_BFPE, m[3], m[4]))
        return x_BFPE + m[5] * y

    def store_keys(
        self, layer: int, x_BFPE: Tensor, time_BF6E: Tensor, rotary: Rotary, attention: SelfAttention
    ) -> None:
        """Only what later tokens will read of this block."""
        m = self._modulation(time_BF6E, x_BFPE.dtype)
        h_BLE = self._modulated(x_BFPE, m[0], m[1]).flatten(1, 2)
        k = rotate(self.self_attn.keys(h_BLE), rotary).transpose(1, 2)
        attention.store(layer, k, self.self_attn.values(h_BLE).transpose(1, 2))

    def caption_kv(self, context_STE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of embedded captions, each [S, N, T, D]."""
        keys, values = self.cross_attn.keys(context_STE), self.cross_attn.values(context_STE)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def _modulation(self, time_BF6E: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        m = (self.modulation.float() + time_BF6E).to(dtype)
        return m[:, :, :, None].unbind(2)

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x, (x.shape[-1],), eps=self.eps), 1 + scale)

    def _qkv(self, h_BFPE: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        h_BLE = h_BFPE.flatten(1, 2)
        if self.fused_qkv is not None:
            q, k, v = self.fused_qkv(h_BLE, rotary)
        else:
            q = rotate(self.self_attn.queries(h_BLE), rotary)
            k = rotate(self.self_attn.keys(h_BLE), rotary)
            v = self.self_attn.values(h_BLE)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _read_captions(self, x_BFPE: Tensor, caption_k: Tensor, caption_v: Tensor) -> Tensor:
        h = self.norm3(x_BFPE)
        # Rows that share a caption are one query sequence: [B, F * P] or [B * F, P] against [rows, T].
        q = self.cross_attn.queries(h.reshape(caption_k.shape[0], -1, h.shape[-1])).transpose(1, 2)
        return self.cross_attn.output(attend(q, caption_k, caption_v)).view_as(x_BFPE)


class Head(nn.Module):
    """Final norm, modulated by the time vector itself, and the projection to patches."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, config.out_channels * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / math.sqrt(config.dim))

    def forward(self, x_BFPE: Tensor, time_BFE: Tensor) -> Tensor:
        m = (self.modulation.float() + time_BFE[:, :, None]).to(x_BFPE.dtype)
        shift, scale = m[:, :, :, None].unbind(2)
        y: Tensor = self.head(F.layer_norm(x_BFPE, (x_BFPE.shape[-1],), eps=self.eps) * (1 + scale) + shift)
        return y


class DiT(nn.Module):
    """Wan2.1's transformer with per-frame timesteps, per-frame captions and pluggable self-attention."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_channels, dim, config.patch_size, config.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.opening = nn.Parameter(torch.zeros(dim)) if config.opening_embedding else None

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, apart from the time network's."""
        return self.patch_embedding.weight.dtype

    @property
    def _layers(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def forward(
        self,
        latents_BFChw: Tensor,
        timesteps_BF: Tensor,
        *,
        positions_BF: Tensor,
        shot_ids_BF: Tensor,
        captions: CaptionKV,
        caption_ids_BF: Tensor,
        attention: SelfAttention,
        opening_F: Tensor | None = None,
    ) -> Tensor:
        """The raw prediction (see `config.prediction`) for every frame, [B, F, C, h, w].

        Args: timesteps 0..1000; positions are temporal positions, shot_ids the indicator's shot numbers;
            caption_ids index `captions` (any row may use any caption); attention says which frames read which;
            opening, bool: which frames are of a shot's first chunk (`config.opening_embedding`), None: none.
        """
        batch, frames = latents_BFChw.shape[:2]
        rotary = self.rotary(positions_BF, shot_ids_BF, *latents_BFChw.shape[-2:])
        per_frame = captions.select(caption_ids_BF.expand(batch, frames).flatten())
        time = self.embed_time(timesteps_BF)
        opening = False if opening_F is None else opening_F
        output = self.forward_tokens(latents_BFChw, time, rotary, per_frame, attention, opening=opening)
        assert output is not None
        return output

    def forward_tokens(
        self,
        latents_BFChw: Tensor,
        time: TimeEmbedding,
        rotary: Rotary,
        captions: CaptionKV,
        attention: SelfAttention,
        *,
        keys_only: bool = False,
        opening: bool | Tensor = False,
    ) -> Tensor | None:
        """The same with prepared inputs, as the streaming loop calls it.

        Args: captions already selected, one per batch row or one per frame (rows B or B * F).
            keys_only: stop once the last block's keys are stored; returns None.
            opening: whether these frames are a shot's first chunk (`config.opening_embedding`); or which, bool [F].
        """
        height, width = self.config.grid(*latents_BFChw.shape[-2:])
        x = self._patchify(latents_BFChw)
        if self.opening is not None and opening is not False:
            x = x + self._opening(opening).to(x.dtype)
        last = len(self.blocks) - 1
        for layer, block in enumerate(self._layers):
            if keys_only and layer == last:
                block.store_keys(layer, x, time.blocks, rotary, attention)
                return None
            x = block(layer, x, time.blocks, rotary, captions.keys[layer], captions.values[layer], attention)
        return self._unpatchify(self.head(x, time.head), height, width)

    def embed_time(self, timesteps_BF: Tensor) -> TimeEmbedding:
        """Time vectors for timesteps on the 0..1000 scale, always computed in at least float32."""
        with torch.autocast(timesteps_BF.device.type, enabled=False):
            dtype = next(self.time_embedding.parameters()).dtype
            features = timestep_features(timesteps_BF, self.config.freq_dim).to(dtype)
            head = self.time_embedding(features)
            blocks = self.time_projection(head).unflatten(-1, (6, -1))
        return TimeEmbedding(head.float(), blocks.float())

    def encode_captions(self, states_STE: Tensor) -> CaptionKV:
        """Keys and values of every layer for caption states [S, text_len, text_dim].

        Every position is read, also those beyond a caption's end: zero states become a constant key (as in Wan2.1).
        Raises: ValueError on states of another shape.
        """
        expected = (self.config.text_len, self.config.text_dim)
        if states_STE.shape[1:] != expected:
            raise ValueError(f"caption states must be [S, {expected[0]}, {expected[1]}], got {list(states_STE.shape)}")
        context = self.text_embedding(states_STE.to(self.device, self.dtype))
        pairs = [block.caption_kv(context) for block in self._layers]
        return CaptionKV(tuple(k for k, _ in pairs), tuple(v for _, v in pairs))

    def rotary(self, positions_BF: Tensor, shot_ids_BF: Tensor, height: int, width: int) -> Rotary:
        """The rotary table of frames at these positions, for latents of height x width."""
        rows, columns = self.config.grid(height, width)
        return rotary_table(
            positions_BF,
            shot_ids_BF,
            head_dim=self.config.head_dim,
            height=rows,
            width=columns,
            theta=self.config.theta,
        )

    def cast_for_inference(self, dtype: torch.dtype) -> DiT:
        """Cast the weights in place, keeping the small time network in float32. Returns self."""
        self.to(dtype)
        self.time_embedding.float()
        self.time_projection.float()
        return self.eval().requires_grad_(False)

    def fuse_for_serving(self) -> DiT:
        """Let queries, keys and values share one matrix product. For inference, on the final device. Returns self."""
        for block in self._layers:
            block.fused_qkv = FusedQKV(block.self_attn)
        return self

    def init_for_training(self) -> DiT:
        """Start from scratch: every gate closed, every block the identity, the prediction zero. Returns self."""
        for name, parameter in self.named_parameters():
            closed = name.startswith(("time_projection", "head.head"))
            if closed or name.endswith(("modulation", ".bias", "cross_attn.o.weight")):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter.flatten(1))
        return self

    def _opening(self, opening: Literal[True] | Tensor) -> Tensor:
        """What is added to the tokens of a shot's first chunk, [E], or to those of some frames, [F, 1, E]."""
        assert self.opening is not None
        return self.opening if opening is True else opening[:, None, None] * self.opening

    def _patchify(self, latents_BFChw: Tensor) -> Tensor:
        _, p, q = self.config.patch_size
        weight = self.patch_embedding.weight
        patches = rearrange(latents_BFChw, "b f c (h p) (w q) -> b f (h w) (c p q)", p=p, q=q)
        # The convolution with kernel = stride is one matrix product, and far faster as such on a CPU.
        x = F.linear(patches.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias)
        if not self.config.absolute_positions:
            return x
        rows, columns = self.config.grid(*latents_BFChw.shape[-2:])
        return x + grid_features(rows, columns, self.config.dim, x.device).to(x.dtype)

    def _unpatchify(self, y_BFPO: Tensor, height: int, width: int) -> Tensor:
        _, p, q = self.config.patch_size
        return rearrange(y_BFPO, "b f (h w) (p q c) -> b f c (h p) (w q)", h=height, w=width, p=p, q=q)


def timestep_features(timesteps: Tensor, dim: int) -> Tensor:
    """[..., dim] float32: cosines then sines of t * 10000^(-j / (dim / 2)), computed in float64."""
    half = dim // 2
    frequencies = 10000 ** (-torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
    angles = timesteps.double()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


@lru_cache(maxsize=16)
def grid_features(rows: int, columns: int, dim: int, device: torch.device) -> Tensor:
    """[rows * columns, dim] float32: the timestep features of a token's row, then those of its column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    # Wavelengths from 2 pi cells up, as for words in a sentence (Vaswani et al. 2017).
    halves = [timestep_features(axis.flatten().float(), dim // 2) for axis in (row, column)]
    return torch.cat(halves, dim=-1).to(device)
