"""Named presets: everything in which two models on the one code path differ, and where their weights are found.

Numbers of the Wan preset are the published ones; storyworld has its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from shotstream.diffusion.schedule import FlowSchedule
from shotstream.engine.cache import SlabConfig
from shotstream.engine.teacher import ContextTime
from shotstream.models.checkpoint import INDEX_SUFFIX
from shotstream.models.dit import DiTConfig
from shotstream.models.text import MINILM_FOLDER, TextConfig
from shotstream.story import CaptionStyle

Role = Literal["student", "teacher", "codec", "text"]

WEIGHTS_VARIABLE = "SHOTSTREAM_WEIGHTS"
"""Environment variable: a folder that holds one folder of weights per preset."""

PACKAGE_WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """Where one part of a model lies: a path inside a weights folder, and inside a repository of the hub."""

    path: str
    """A file, or "" for the whole folder. A safetensors file may lie there as shards beside its index instead."""
    hub_id: str = ""
    """Empty: the part ships with the package."""
    hub_files: tuple[str, ...] = ()
    """Patterns of the files to fetch; empty means just ``path``."""
    substitutes: tuple[str, ...] = ()
    """Files that are taken in its place from a folder in which somebody put them."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One model with its sizes, its schedule and its files."""

    name: str
    dit: DiTConfig
    text: TextConfig
    codec: Literal["tiny", "wan"]
    """Whose latents they are: our tiny codec's, or those of the Wan VAE, which TAEHV makes too. Sizes come with the
    weights."""
    spatial_stride: int
    """Pixels per latent cell, each way."""
    height: int
    width: int
    fps: int = 16
    schedule: FlowSchedule
    student_levels: tuple[int, ...]
    """Denoising steps of the student as levels of the schedule's table; 1000 is pure noise."""
    teacher_steps: int
    """Euler steps of the teacher."""
    guidance_scale: float
    """Of the teacher: 1 is no guidance."""
    negative_prompt: str = ""
    """What guidance steers away from; empty means zero text states."""
    teacher_context_time: ContextTime = "zero"
    max_shot_distance: int = 11
    """Longest distance in shots that the indicator saw in training."""
    memory_rule: Literal["matching", "published"] = "matching"
    """Whose frames are remembered where shots outnumber the places: of those that fit the caption, or of the newest."""
    caption_style: CaptionStyle = "natural"
    slab: SlabConfig = field(default_factory=SlabConfig)
    frames_after_steer: int | None = None
    """Latent frames of the running shot's past that it still reads once it is steered; None: all, as published. What a
    shot already shows holds it back: it obeys more often the less of that it reads."""
    files: Mapping[Role, WeightFile]

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", MappingProxyType(dict(self.files)))
        cell = self.spatial_stride * self.dit.patch_size[1]
        if self.height % cell or self.width % cell:
            raise ValueError(f"{self.height}x{self.width} pixels are not a multiple of {cell}")
        if (self.text.length, self.text.width) != (self.dit.text_len, self.dit.text_dim):
            raise ValueError(
                f"the text encoder gives {self.text.length} x {self.text.width}, "
                f"the DiT reads {self.dit.text_len} x {self.dit.text_dim}"
            )

    @property
    def latent_height(self) -> int:
        return self.height // self.spatial_stride

    @property
    def latent_width(self) -> int:
        return self.width // self.spatial_stride

    @property
    def student_timesteps(self) -> tuple[float, ...]:
        """The student's steps on the 0..1000 scale, after the shift."""
        return self.schedule.warp_steps(self.student_levels)


STORYWORLD = Preset(
    name="storyworld",
    dit=DiTConfig(
        dim=256,
        ffn_dim=1024,
        num_heads=2,
        num_layers=6,
        in_channels=48,
        out_channels=48,
        text_dim=384,
        text_len=64,
        gelu="none",
        absolute_positions=True,
        prediction="clean",
    ),
    text=TextConfig(encoder="minilm", length=64, width=384, layers=4),
    codec="tiny",
    spatial_stride=16,
    height=192,
    width=320,
    schedule=FlowSchedule(shift=3.0),
    student_levels=(1000, 792, 542, 167),
    teacher_steps=24,
    guidance_scale=2.0,
    frames_after_steer=3,
    files={
        "student": WeightFile(path="student.safetensors"),
        "teacher": WeightFile(path="teacher.safetensors"),
        "codec": WeightFile(path="codec.safetensors"),
    },
)

_WAN_HUB_ID = "Wan-AI/Wan2.1-T2V-1.3B"
_SHOTSTREAM_HUB_ID = "KlingTeam/ShotStream"

WAN_1_3B = Preset(
    name="wan-1.3b",
    dit=DiTConfig(),
    text=TextConfig(encoder="umt5", length=512, width=4096),
    codec="wan",
    spatial_stride=8,
    height=480,
    width=832,
    schedule=FlowSchedule(shift=8.0),
    student_levels=(1000, 740, 500, 260),
    teacher_steps=50,
    guidance_scale=6.0,
    negative_prompt="low quality, blurry, deformed, watermark, a still picture",
    teacher_context_time="shared",
    max_shot_distance=36,
    caption_style="reference",
    files={
        "student": WeightFile(path="shotstream_merged.pt", hub_id=_SHOTSTREAM_HUB_ID),
        "teacher": WeightFile(path="bidirectional_teacher.pt", hub_id=_SHOTSTREAM_HUB_ID),
        "codec": WeightFile(
            path="Wan2.1_VAE.pth", hub_id=_WAN_HUB_ID, substitutes=("taew2_1.safetensors", "taew2_1.pth")
        ),
        "text": WeightFile(
            path="", hub_id=_WAN_HUB_ID, hub_files=("models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/*")
        ),
    },
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in (STORYWORLD, WAN_1_3B)})


def get_preset(name: str) -> Preset:
    """Return a preset by its name. Raises: ValueError that lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def find_weights(preset: Preset, role: Role, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the local path of one part of a preset, fetching from the hub what is neither local nor in the package.

    Looked up in this order: ``folder``; the preset's folder under $SHOTSTREAM_WEIGHTS; the package; the hub. Inside a
    folder the part may also lie in a sub-folder named like its hub repository, and a safetensors file as shards: their
    index is returned. A substitute that lies there comes before the part itself. A ``folder`` that is itself a file, or
    the index of one, is the student or the teacher.

    Raises: ValueError that says where was looked and how to get the part.
    """
    if role not in get_args(Role) or role not in preset.files:
        raise ValueError(f"preset {preset.name} has no {role!r} weights: its parts are {', '.join(preset.files)}")
    part = preset.files[role]
    if (found := find_local_weights(preset, role, folder)) is not None:
        return found
    if part.hub_id:
        return _fetch(part)
    looked = ", ".join(str(place) for place in _local_folders(preset, folder))
    raise ValueError(f"no {role} weights ({part.path}) for preset {preset.name}: looked in {looked}")


def _check_folder(preset: Preset, folder: Path) -> None:
    """Refuse a folder with none of the preset's files: the shipped ones would be taken without a word."""
    known = (folder / MINILM_FOLDER).is_dir() or any(_find_in(folder, part) for part in preset.files.values())
    if folder.is_dir() and not known:
        names = ", ".join(part.path or part.hub_files[0] for part in preset.files.values())
        raise ValueError(f"{folder} holds no weights of preset {preset.name}: expected any of {names}")


def find_local_weights(preset: Preset, role: Role, folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Return what `find_weights` finds without the hub, or None. Raises: ValueError for a folder that it refuses."""
    if folder is not None and not Path(folder).exists():
        raise ValueError(f"no weights at {folder}: pass an existing folder or file")
    if folder is not None and Path(folder).is_file() and role in ("student", "teacher"):
        return Path(folder)
    if folder is not None:
        _check_folder(preset, Path(folder))
    for place in _local_folders(preset, folder):
        if (found := _find_in(place, preset.files[role])) is not None:
            return found
    return None


def find_local_minilm(preset: Preset, folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Return MiniLM's folder beside the preset's other weights, or directly in $SHOTSTREAM_WEIGHTS; None without."""
    shared = [Path(os.environ[WEIGHTS_VARIABLE])] if os.environ.get(WEIGHTS_VARIABLE) else []
    places = (place / MINILM_FOLDER for place in [*_local_folders(preset, folder), *shared])
    return next((place for place in places if place.is_dir()), None)


def _local_folders(preset: Preset, folder: str | os.PathLike[str] | None) -> list[Path]:
    given = [Path(folder)] if folder is not None and Path(folder).is_dir() else []
    shared = [Path(os.environ[WEIGHTS_VARIABLE]) / preset.name] if os.environ.get(WEIGHTS_VARIABLE) else []
    return [*given, *shared, PACKAGE_WEIGHTS / preset.name]


def _find_in(folder: Path, part: WeightFile) -> Path | None:
    for base in (folder, folder / part.hub_id.rpartition("/")[2]):
        for name in part.substitutes:
            if (base / name).is_file():
                return base / name
        wanted = [pattern for pattern in part.hub_files if "*" not in pattern] or [part.path]
        if all((base / name).is_file() for name in wanted):
            return base / part.path
        index = base / f"{part.path}{INDEX_SUFFIX}"
        if part.path.endswith(".safetensors") and index.is_file():
            return index
    return None


def _fetch(part: WeightFile) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = list(part.hub_files or (part.path,))
    try:
        return Path(snapshot_download(part.hub_id, allow_patterns=patterns)) / part.path
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ValueError(
            f"cannot get {', '.join(patterns)} from {part.hub_id} on the hub ({type(error).__name__}): pass --weights "
            f"FOLDER with these files, or set {WEIGHTS_VARIABLE}"
        ) from error
