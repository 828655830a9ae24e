"""Text states: zeros beyond the caption, nothing that depends on the neighbours, and a wrong file is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from shotstream.models import text
from shotstream.models.text import CachedTextEncoder, MiniLMEncoder, TextConfig, resolve_minilm


@pytest.fixture(scope="module")
def minilm() -> MiniLMEncoder:
    if not text.importlib.util.find_spec(text.MINILM_PACKAGE):
        pytest.skip("the MiniLM weights package is not installed: run `make test`, which installs it")
    return MiniLMEncoder()


def test_states_are_exact_zeros_beyond_the_caption(minilm: MiniLMEncoder) -> None:
    captions = ["a fox runs", "a penguin in a red coat sits on the warm sand at sunset"]
    states = minilm.encode(captions)
    assert states.shape == (2, 64, 384)
    assert states.dtype == torch.float32
    for caption, caption_states in zip(captions, states, strict=True):
        length = minilm.count_tokens(caption)
        assert (caption_states[length:] == 0).all()
        assert (caption_states[:length].abs().sum(-1) > 0).all()


def test_a_caption_does_not_depend_on_what_it_is_batched_with(minilm: MiniLMEncoder) -> None:
    captions = ["a fox runs", "a penguin in a red coat sits on the warm sand at sunset"]
    together = minilm.encode(captions)
    alone = torch.cat([minilm.encode([caption]) for caption in captions])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_building_an_encoder_leaves_the_random_state_alone(minilm: MiniLMEncoder) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    MiniLMEncoder(minilm.folder)
    assert torch.equal(before, torch.get_rng_state())


def test_the_top_on_states_of_the_layers_below_is_the_whole(minilm: MiniLMEncoder) -> None:
    captions = ["a fox in a blue coat walks along the beach", "a bear", "the robot and the girl meet, it rains"]
    top = minilm.top_layers(2)
    states = MiniLMEncoder(minilm.folder, layers=4).encode(captions)
    torch.testing.assert_close(top(states), minilm.encode(captions), rtol=0, atol=1e-5)
    assert all(weight.requires_grad for weight in top.parameters())
    with torch.no_grad():
        next(top.parameters()).zero_()  # a copy
    assert not torch.equal(minilm.top_layers(2)(states), top(states))
    for count in (0, 7):
        with pytest.raises(ValueError, match="MiniLM has 6 layers"):
            minilm.top_layers(count)


def test_meaning_is_closer_than_chance(minilm: MiniLMEncoder) -> None:
    fox, same, other = minilm.embed(["a fox runs on sand", "a fox is running on the beach", "a kitchen at night"])
    assert fox @ same > 0.7 > 0.4 > fox @ other


def test_a_long_or_empty_caption_is_refused(minilm: MiniLMEncoder) -> None:
    with pytest.raises(ValueError, match=r"72 tokens, the text encoder takes 64"):
        minilm.encode(["fox " * 70])
    with pytest.raises(ValueError, match="empty"):
        minilm.encode(["  "])


def test_changed_weights_are_refused(minilm: MiniLMEncoder, tmp_path: Path) -> None:
    for name in text.MINILM_FILES:
        (tmp_path / name).write_bytes((minilm.folder / name).read_bytes())
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(ValueError, match="not the published MiniLM"):
        MiniLMEncoder(tmp_path)


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json.* missing"):
        MiniLMEncoder(tmp_path)
    with pytest.raises(ValueError, match="no umT5 encoder"):
        text.UMT5Encoder(tmp_path)


def _minilm_files(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in text.MINILM_FILES:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("there", "taken"),
    [(("package", "local", "hub"), "package/model"), (("local", "hub"), "local"), (("hub",), "hub"), ((), None)],
)
def test_minilm_is_the_package_then_a_local_folder_then_the_hub(
    there: tuple[str, ...], taken: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(repository: str, **_: object) -> str:
        if "hub" not in there:
            raise LocalEntryNotFoundError(repository)
        return str(tmp_path / "hub")

    for name in ("package/model", "local", "hub"):
        _minilm_files(tmp_path / name)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "package")])
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda _: spec if "package" in there else None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    local = tmp_path / "local" if "local" in there else None
    if taken is None:
        with pytest.raises(ValueError, match=r"pip install .* into minilm/ of the folder of weights"):
            resolve_minilm(local)
    else:
        assert resolve_minilm(local) == tmp_path / taken


class CountingEncoder:
    """Gives the caption's length as its state and counts its calls."""

    config = TextConfig(encoder="minilm", length=2, width=1)

    def __init__(self) -> None:
        self.calls: list[str] = []

    def count_tokens(self, caption: str) -> int:
        return len(caption.split())

    def encode(self, captions: Sequence[str]) -> Tensor:
        self.calls.extend(captions)
        return torch.tensor([float(len(caption)) for caption in captions])[:, None, None].expand(-1, 2, 1)


def test_the_cache_encodes_each_caption_once_and_forgets_the_oldest() -> None:
    inner = CountingEncoder()
    cached = CachedTextEncoder(inner, capacity=2)
    assert cached.encode(["a", "bb", "a"])[:, 0, 0].tolist() == [1.0, 2.0, 1.0]
    cached.encode(["ccc"])
    cached.encode(["a", "bb"])
    assert inner.calls == ["a", "bb", "ccc", "bb"]


def test_transformers_is_not_imported_with_the_module() -> None:
    code = "import sys, shotstream.models.text; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _tiny_official_umt5(width: int = 8, heads: int = 2, inner: int = 6, ffn: int = 10) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.5

    state = {"token_embedding.weight": rand(30, width), "norm.weight": 1 + rand(width)}
    for block in range(2):
        prefix = f"blocks.{block}."
        state |= {f"{prefix}norm1.weight": 1 + rand(width), f"{prefix}norm2.weight": 1 + rand(width)}
        state |= {f"{prefix}attn.{name}.weight": rand(inner, width) for name in "qkv"}
        state |= {f"{prefix}attn.o.weight": rand(width, inner), f"{prefix}ffn.gate.0.weight": rand(ffn, width)}
        state |= {f"{prefix}ffn.fc1.weight": rand(ffn, width), f"{prefix}ffn.fc2.weight": rand(width, ffn)}
        state[f"{prefix}pos_embedding.embedding.weight"] = rand(32, heads)
    return state


def _plain_umt5(state: dict[str, Tensor], ids: list[int]) -> Tensor:
    """The encoder written down from its published formulas, for one caption without padding."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    def bucket(offset: int) -> int:
        distance = abs(offset)
        if distance >= 8:
            distance = min(15, 8 + int(math.log(distance / 8) / math.log(128 / 8) * 8))
        return distance + (16 if offset > 0 else 0)

    length = len(ids)
    buckets = torch.tensor([[bucket(key - query) for key in range(length)] for query in range(length)])
    x = state["token_embedding.weight"][ids]
    for block in range(2):
        part = {key.split(".", 2)[2]: value for key, value in state.items() if key.startswith(f"blocks.{block}.")}
        h = norm(x, part["norm1.weight"])
        q, k, v = (torch.unflatten(h @ part[f"attn.{name}.weight"].T, -1, (2, -1)).transpose(0, 1) for name in "qkv")
        bias = part["pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        mixed = torch.softmax(q @ k.transpose(-1, -2) + bias, -1) @ v
        x = x + mixed.transpose(0, 1).flatten(1) @ part["attn.o.weight"].T
        h = norm(x, part["norm2.weight"])
        gate = torch.nn.functional.gelu(h @ part["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (h @ part["ffn.fc1.weight"].T)) @ part["ffn.fc2.weight"].T
    return norm(x, state["norm.weight"])


def test_official_umt5_files_load_and_follow_the_published_formulas(tmp_path: Path) -> None:
    state = _tiny_official_umt5()
    torch.save(state, tmp_path / text.UMT5_WEIGHTS)
    model = text._load_umt5(tmp_path / text.UMT5_WEIGHTS, torch.float32)
    ids = [(7 * index) % 30 for index in range(20)]
    padded = torch.tensor([ids + [0] * 5])
    mask = torch.tensor([[1] * 20 + [0] * 5])
    got = model(input_ids=padded, attention_mask=mask).last_hidden_state[0, :20]
    # Random weights make sharp softmaxes: the formulas in float32 differ from themselves in float64 by up to 7e-5.
    torch.testing.assert_close(got, _plain_umt5(state, ids), atol=5e-4, rtol=0)


@pytest.mark.parametrize("change", ["garbage", "missing", "reshaped"])
def test_a_broken_umt5_file_is_named(change: str, tmp_path: Path) -> None:
    path, state = tmp_path / text.UMT5_WEIGHTS, _tiny_official_umt5()
    if change == "missing":
        del state["blocks.0.attn.q.weight"]
    if change == "reshaped":
        state["blocks.1.attn.k.weight"] = torch.zeros(6, 9)
    torch.save(state, path)
    if change == "garbage":
        path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match=text.UMT5_WEIGHTS):
        text._load_umt5(path, torch.float32)


def test_a_foreign_umt5_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.other"):
        text.convert_umt5_keys({"blocks.0.other": torch.zeros(1)})


def test_text_cleaning_follows_the_published_steps() -> None:
    pytest.importorskip("ftfy", reason="ftfy comes with the `wan` extra")
    assert text.clean_text("  Fox &amp;amp; hare\n\t run  ") == "Fox & hare run"
