"""What weights a preset would use: the listing behind `shotstream weights`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from shotstream.models.checkpoint import INDEX_SUFFIX, shards_of
from shotstream.models.text import resolve_minilm
from shotstream.presets import PACKAGE_WEIGHTS, Preset, find_local_minilm, find_local_weights

_SHOWN_METADATA = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightEntry:
    """One part of a preset and the file it would be read from."""

    part: str
    path: str = ""
    """Empty where nothing was found on this machine."""
    size_bytes: int = 0
    sha256: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def summary(self) -> str:
        """One or more lines for people."""
        lines = [f"{self.part:10} {self.path or 'not on this machine'} {self.note}".rstrip()]
        if self.sha256:
            lines.append(f"{'':10} {self.size_bytes / 2**20:.1f} MiB, SHA-256 {self.sha256}")
        for key, value in self.metadata.items():
            lines.append(f"{'':10} {key}: {_short(value)}")
        return "\n".join(lines)


def list_weights(preset: Preset, folder: Path | None = None) -> list[WeightEntry]:
    """Describe what `find_weights` finds for every part of a preset, its shards after it, and what ships beside the
    parts in the package; nothing is fetched.

    Args: folder may be a file, which `find_weights` takes for the student and for the teacher.
    Raises: ValueError if ``folder`` does not exist or holds nothing of the preset, or a file is not what its name says.
    """
    entries = []
    for role, part in preset.files.items():
        path = find_local_weights(preset, role, folder)
        entries.append(_entry(role, path, f"(would be fetched from {part.hub_id} on the hub)" if part.hub_id else ""))
        entries += _shard_entries(role, path)
    if preset.text.encoder == "minilm":
        entries.append(_minilm_entry(find_local_minilm(preset, folder)))
    listed = {entry.path for entry in entries}
    shipped = {str(PACKAGE_WEIGHTS / preset.name / part.path) for part in preset.files.values()}
    extras = sorted(path for path in (PACKAGE_WEIGHTS / preset.name).glob("*.*") if str(path) not in listed | shipped)
    return entries + [
        _entry(path.stem.lower(), path, "") for path in extras if path.suffix in (".safetensors", ".json")
    ]


def read_metadata(path: Path) -> dict[str, Any]:
    """Return a safetensors file's metadata with JSON values parsed. Raises: ValueError if the file is another kind."""
    try:
        with safe_open(path, "pt") as file:
            raw = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    return {key: _parsed(value) for key, value in raw.items()}


def _entry(part: str, path: Path | None, hub_note: str) -> WeightEntry:
    if path is None:
        return WeightEntry(part=part, note=hub_note)
    if path.is_dir():
        return WeightEntry(part=part, path=str(path), note="(folder)")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    return WeightEntry(part=part, path=str(path), size_bytes=path.stat().st_size, sha256=digest, metadata=metadata)


def _shard_entries(part: str, path: Path | None) -> list[WeightEntry]:
    """The files that hold a part's tensors, where ``path`` is only their index."""
    if path is None or not path.name.endswith(INDEX_SUFFIX):
        return []
    return [_entry(part, shard if shard.is_file() else None, f"({shard} is missing)") for shard in shards_of(path)]


def _minilm_entry(local: Path | None) -> WeightEntry:
    try:
        return _entry("text", resolve_minilm(local, fetch=False) / "model.safetensors", "")
    except ValueError as error:
        return WeightEntry(part="text", note=f"({error})")


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN_METADATA * 3 else text[: _SHOWN_METADATA * 3 - 3] + "..."
