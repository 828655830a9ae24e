"""The benchmark measures what it says, and neither it nor `generate` needs the renderer."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from shotstream import bench, cli
from shotstream.engine import loading
from shotstream.engine.fake import FakeConfig, FakeEngine
from shotstream.engine.stream import Engine
from shotstream.generate import generate
from shotstream.presets import STORYWORLD, find_local_weights
from shotstream.story import Shot, Story


def test_the_last_line_is_one_json_object(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "load", lambda *_, **__: tiny_engine)
    assert cli.main(["bench", "--seconds", "2"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    wanted = {"preset", "device", "end_to_end_fps", "rss_growth_mb", "load_average", "ms_per_stage", "commit"}
    assert wanted <= result.keys()
    assert result["num_cuts"] >= 1
    assert 0 < result["first_frame_after_cut_ms_p50"] <= result["first_frame_after_cut_ms_p95"]
    assert result["num_frames"] / result["seconds"] == pytest.approx(result["session_fps"])
    assert set(result["ms_per_stage"]) == {"text", "context", "commit", "denoise", "decode", "other"}


def test_prompts_never_repeat() -> None:
    prompts = list(itertools.islice(bench.new_prompts("a preset without vocabulary", 0), 3000))
    assert len(set(prompts)) == 3000


@pytest.mark.parametrize(("load", "warned"), [(50.0, True), (0.0, False)])
def test_a_busy_machine_is_named(
    load: float, warned: bool, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "load", lambda *_, **__: tiny_engine)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    assert cli.main(["bench", "--seconds", "0.5"]) == 0
    captured = capsys.readouterr()
    assert ("warning: the machine is busy (load 50.0" in captured.err) == warned
    assert json.loads(captured.out.strip().splitlines()[-1])["load_average"] == load


def test_where_time_allows_at_least_thirty_cuts_are_made() -> None:
    engine = FakeEngine(FakeConfig(chunk_ms=0.0, open_ms=0.0))
    engine.model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    result = bench.measure(engine, seconds=5, load_average=0.0)
    assert result.num_cuts >= 30


def test_it_agrees_with_the_wall_clock_of_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shotstream.generate.unknown_words", lambda *_: [])
    engine = FakeEngine(FakeConfig(chunk_ms=400.0))
    engine.text = None
    engine.model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    story = Story(shots=(Shot(caption="a fox"),))
    ratios = []
    for attempt in range(3):  # other work on the machine may slow one of the two down
        filmed = generate(engine, story, tmp_path / f"{attempt}.mp4", console=Console(file=io.StringIO()))
        measured = bench.measure(engine, seconds=6, load_average=0.0)
        ratios.append(filmed.num_frames / filmed.seconds / measured.end_to_end_fps)
        if ratios[-1] == pytest.approx(1, abs=0.15):
            return
    pytest.fail(f"generate's frames a second by bench's: {ratios}")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_time_that_never_ends_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--seconds", seconds]) == 2
    error = capsys.readouterr().err
    assert "--seconds must be a positive number" in error
    assert error.count("\n") == 1


def test_generate_and_bench_never_import_the_renderer() -> None:
    code = (
        "import sys, shotstream.cli, shotstream.generate, shotstream.bench, shotstream.engine.loading\n"
        "import shotstream.models.tiny_codec\n"
        "found = [name for name in sys.modules if name == 'skia' or name.startswith('shotstream.storyworld')]\n"
        "sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["generate", "--shot", "a fox", "--chunks", "1", "-o"], ["bench", "--seconds"]])
def test_the_shipped_model_runs_where_the_renderer_is_missing(arguments: list[str], tmp_path: Path) -> None:
    if find_local_weights(STORYWORLD, "student") is None or find_local_weights(STORYWORLD, "codec") is None:
        pytest.skip("the storyworld weights are not in the package")
    last = "1" if arguments[0] == "bench" else str(tmp_path / "a.mp4")
    code = (
        "import sys; sys.modules.update({'skia': None, 'shotstream.storyworld': None})\n"
        f"from shotstream import cli; sys.exit(cli.main({[*arguments, last]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bad_input_is_one_line_on_a_busy_machine_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (50.0, 50.0, 50.0))
    for preset, message in (("nope", "unknown preset 'nope'"), ("fake", "preset fake only draws numbered pictures")):
        assert cli.main(["bench", "--preset", preset]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
