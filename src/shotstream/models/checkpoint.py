"""Reading and writing weights.

Ours: safetensors whose metadata holds the resolved config as JSON. Foreign: the `.pt` files of the published code, the
official Wan folder or file, that of Diffusers, and LoRA adapters in PEFT's naming, merged on load. Safetensors may be
split into shards beside an index. Pickled code is never run.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shotstream.models.dit import DiT, DiTConfig

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
PREFIXES = ("model.", "base_model.model.")
SECTIONS = ("generator", "generator_lora")
EMA_SECTION = "generator_ema"
INDEX_SUFFIX = ".index.json"
SHARD_BYTES = 4 * 2**30
"""Largest file that is written; what is larger is split."""
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
"""In the folders of Wan and Diffusers."""
DIFFUSERS_KEY = ".attn1."
"""In names of this kind alone."""
DIFFUSERS_NAMES = (
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    (".attn1.to_out.0.", ".self_attn.o."),
    (".attn2.to_out.0.", ".cross_attn.o."),
    (".attn1.to_", ".self_attn."),
    (".attn2.to_", ".cross_attn."),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    (".norm2.", ".norm3."),
    (".scale_shift_table", ".modulation"),
    ("proj_out.", "head.head."),
)
"""Parts of Diffusers' names for a Wan transformer, and the official ones; earlier lines first."""
LORA_KEY = re.compile(r"(.+)\.lora_(A|B)(?:\.[^.]+)?\.weight$")


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Say in one ValueError that names the file that it is damaged or of another kind, whatever is raised about it.

    Nobody lists what libraries raise: unpickling noise ends in almost anything, tokenizers in a bare Exception.
    """
    try:
        yield
    except Exception as error:
        if type(error) is ValueError and str(path) in str(error):
            raise
        if type(error) is ValueError:  # ours, already in words
            raise ValueError(f"{path}: {error}") from error
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise ValueError(
            f"cannot read weights from {path}: {reason} (damaged, or of another kind: fetch the file again)"
        ) from error


def read_tensors(
    path: Path | str, *, use_ema: bool = False, mmap: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors or `.pt` file, or of the shards that an `.index.json` lists, and their metadata.

    The name of a file that lies there as shards is as good as that of their index.

    Args: use_ema picks the averaged weights of a `.pt`; mmap leaves a large `.pt` on the disk until it is used.
    Raises: ValueError with the way out when the file is missing, unreadable or needs code to unpickle.
    """
    path = Path(path)
    if not path.is_file() and _index_of(path).is_file():
        path = _index_of(path)
    if not path.is_file():
        raise ValueError(f"no weights file at {path}: check the path, or run `shotstream weights` for what is known")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    with reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        return _read_pickled(path, use_ema, mmap), {}


def shards_of(index: Path) -> list[Path]:
    """The files that an index names, beside it. Raises: ValueError if it is no index."""
    with reading(index):
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [index.with_name(name) for name in names]


def _read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = dict[str, Tensor](), dict[str, str]()
    for shard in shards_of(index):
        more, about = read_tensors(shard)
        tensors |= more
        metadata |= about
    return tensors, metadata


def read_ours(path: Path | str, format: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Tensors, config and metadata of a safetensors file that we wrote in this format.

    Raises: ValueError if it is another kind of file or does not say its config.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != format:
        raise ValueError(
            f"{path}: expected a file of format {format}, got {metadata.get('format')!r}: pass one that we wrote"
        )
    with reading(path):
        config = json.loads(metadata.get("config", "null"))
    if not isinstance(config, dict):
        raise ValueError(f"{path} does not say its config: write it again with the recipe that made it")
    return tensors, config, metadata


def _read_pickled(path: Path, use_ema: bool, mmap: bool) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:  # its text tells to run the code in the file
        raise ValueError(
            f"cannot read weights from {path}: it holds no tensors alone, and code in it is never run: pass a "
            "safetensors file, or the published .pt or .pth"
        ) from error
    section = _section(content, path, use_ema) if isinstance(content, dict) else content
    if not isinstance(section, dict):
        raise ValueError(f"{path} holds a {type(section).__name__}, expected a dict of tensors")
    return {key: value for key, value in section.items() if isinstance(value, Tensor)}


def _section(content: dict[str, Any], path: Path, use_ema: bool) -> Any:
    if use_ema and EMA_SECTION not in content:
        raise ValueError(f"{path} holds no averaged weights ({EMA_SECTION}): load it without use_ema")
    wanted = (EMA_SECTION,) if use_ema else SECTIONS
    return next((content[name] for name in wanted if name in content), content)


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip what FSDP, checkpointing, compile, PEFT and the published wrapper put around parameter names."""
    return {_plain_name(name): tensor for name, tensor in tensors.items()}


def _plain_name(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name, stripped = name[len(prefix) :], True
    return name.replace(".base_layer.", ".")


def official_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a Wan transformer under Diffusers' names its official ones; others stay as they are."""
    if not any(DIFFUSERS_KEY in name for name in tensors):
        return dict(tensors)
    return {_official_name(name): tensor for name, tensor in tensors.items()}


def _official_name(name: str) -> str:
    if name == "scale_shift_table":
        return "head.modulation"
    for theirs, official in DIFFUSERS_NAMES:
        name = name.replace(theirs, official)
    return name


def split_lora(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Separate base tensors from adapters: (base, {module name: (A [r, in], B [out, r])})."""
    base: dict[str, Tensor] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = LORA_KEY.match(name)
        if match:
            halves.setdefault(match[1], {})[match[2]] = tensor
        else:
            base[name] = tensor
    broken = [name for name, half in halves.items() if len(half) != 2]
    if broken:
        raise ValueError(f"LoRA of {broken[0]} has only one of its two matrices A and B: the file is incomplete")
    return base, {name: (half["A"], half["B"]) for name, half in halves.items()}


def merge_lora(
    base: dict[str, Tensor], adapters: Mapping[str, tuple[Tensor, Tensor]], *, scale: float = 1.0
) -> dict[str, Tensor]:
    """W' = W + scale * B A for every adapted module, in float32, cast back. scale = alpha / rank."""
    merged = dict(base)
    for module, (a, b) in adapters.items():
        key = f"{module}.weight"
        if key not in merged:
            raise ValueError(
                f"LoRA adapts {module}, which the base weights do not have: pass the matching base weights"
            )
        weight = merged[key]
        if a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != weight.shape:
            raise ValueError(
                f"LoRA of {module} is A {list(a.shape)}, B {list(b.shape)}, expected [r, {weight.shape[1]}] and "
                f"[{weight.shape[0]}, r]: pass the base weights it was trained on"
            )
        merged[key] = (weight.float() + scale * b.float() @ a.float()).to(weight.dtype)
    return merged


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str, *, assign: bool = False) -> None:
    """Fill a module, or let it have the very tensors (assign); every one must be there with its shape.

    Raises: ValueError naming the first differences.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"{source} does not fit: {len(missing)} tensors missing (first: {missing[:2]}), "
            f"{len(unknown)} unknown (first: {unknown[:2]}): is it for another preset?"
        )
    wrong = [name for name, tensor in expected.items() if tensor.shape != tensors[name].shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{source}: {name} is {list(tensors[name].shape)}, expected {list(expected[name].shape)} "
            f"({len(wrong)} tensors differ): pass the preset these weights were made for"
        )
    module.load_state_dict(dict(tensors), assign=assign)


def parse_config(text: str) -> DiTConfig:
    """A DiTConfig from JSON, in our field names or those of the official config.json, or of Diffusers'.

    Raises: ValueError if the text is not such a config.
    """
    try:
        return _config_from(json.loads(text))
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"cannot read the model's config: {error}") from error


def _config_from(raw: dict[str, Any]) -> DiTConfig:
    raw = raw.get("dit", raw)
    renamed = {"in_dim": "in_channels", "out_dim": "out_channels"}
    known = {renamed.get(k, k): v for k, v in raw.items()}
    if "attention_head_dim" in raw:
        heads = raw["num_attention_heads"]
        known |= {"num_heads": heads, "dim": heads * raw["attention_head_dim"]}
    fields = {k: v for k, v in known.items() if k in DiTConfig.__dataclass_fields__}
    fields["patch_size"] = tuple(fields.get("patch_size", (1, 2, 2)))
    if unsaid := sorted({"dim", "num_layers"} - fields.keys()):  # the defaults are those of a model of 6 GB
        raise ValueError(
            f"it does not say {', '.join(unsaid)}: is it that of a DiT? Pass the weights of a student or a teacher"
        )
    return DiTConfig(**fields)


def config_of(path: Path | str) -> DiTConfig:
    """The network's config that a weights file of ours carries. Raises ValueError if it carries none."""
    _, metadata = read_tensors(Path(path))
    if "config" not in metadata:
        raise ValueError(f"{path} does not say its config: it is no file of ours")
    with reading(path):
        return parse_config(metadata["config"])


def load_dit(
    path: Path | str,
    *,
    config: DiTConfig | None = None,
    lora: Path | str | None = None,
    lora_scale: float = 1.0,
    use_ema: bool = False,
) -> DiT:
    """Build a DiT from a weights file: ours, the published `.pt`, or a Wan file or folder, official or of Diffusers.

    Args: config overrides the one in the file and is needed where the file has none;
        lora: adapters to merge, a file of its own (adapters inside the file itself are merged in any case).
    Raises: ValueError if anything is missing or of another shape.
    """
    path = Path(path)
    if path.is_dir():
        if config is None:
            if not (path / "config.json").is_file():
                raise ValueError(
                    f"no config.json in {path}: pass an official folder, or a weights file with its preset"
                )
            with reading(path / "config.json"):
                config = parse_config((path / "config.json").read_text())
        path = _weights_in(path)
    tensors, metadata = read_tensors(path, use_ema=use_ema)
    if config is None:
        if "config" not in metadata:
            raise ValueError(f"{path} does not say its config: pass the preset it belongs to")
        with reading(path):
            config = parse_config(metadata["config"])
    base, adapters = split_lora(official_names(plain_names(tensors)))
    if lora is not None:
        _, more = split_lora(official_names(plain_names(read_tensors(lora)[0])))
        if not more:
            raise ValueError(f"{lora} holds no LoRA adapters (names ending in lora_A.weight): pass it as the weights")
        adapters |= more
    with torch.device("meta"):
        model = DiT(config)
    model = model.to_empty(device="cpu")
    load_strictly(model, merge_lora(base, adapters, scale=lora_scale), str(path))
    return model


def _weights_in(folder: Path) -> Path:
    """The file of an official folder, or the index of its shards."""
    index = _index_of(folder / WEIGHTS_NAME)
    return index if index.is_file() else folder / WEIGHTS_NAME


def save_dit(
    path: Path | str,
    model: DiT,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
    **metadata: str,
) -> Path:
    """Write weights with the resolved config (and e.g. recipe and step) in the metadata.

    What does not fit one file of `shard_bytes` becomes shards beside `<path>.index.json`. Returns what was written: the
    file, or the index. `load_dit` takes either, and the path in both cases.
    """
    path = Path(path)
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in model.state_dict().items()}
    about = {"config": json.dumps(asdict(model.config)), **metadata}
    if sum(t.numel() * t.element_size() for t in tensors.values()) > shard_bytes:
        return _write_shards(path, tensors, about, shard_bytes)
    save_file(tensors, path, metadata=about)
    _index_of(path).unlink(missing_ok=True)  # of an earlier, larger model: a folder would be read by it
    return path


def _write_shards(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], shard_bytes: int) -> Path:
    pattern = f"{path.stem}{{suffix}}{path.suffix}"
    split = split_torch_state_dict_into_shards(tensors, filename_pattern=pattern, max_shard_size=shard_bytes)
    for name, keys in split.filename_to_tensors.items():
        save_file({key: tensors[key] for key in keys}, path.with_name(name), metadata=metadata)
    index = _index_of(path)
    index.write_text(json.dumps({"metadata": split.metadata, "weight_map": split.tensor_to_filename}, indent=1))
    path.unlink(missing_ok=True)  # of an earlier, smaller model: it would be read instead
    return index


def _index_of(path: Path) -> Path:
    return path.with_name(path.name + INDEX_SUFFIX)
