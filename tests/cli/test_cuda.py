"""The commands on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
import torch

from shotstream import cli

pytestmark = pytest.mark.gpu

PRESET = ["--preset", "tiny", "--device", "cuda"]


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_generate_films_two_shots(cuda: torch.device, tiny_weights: Path, tmp_path: Path, model: str) -> None:
    output = tmp_path / "out.mp4"
    shots = ["--shot", "a fox", "--shot", "a wide shot of the city", "--steer", "1:1:he stops", "--chunks", "2"]
    weights = ["--weights", str(tiny_weights), "--model", model]
    assert cli.main(["generate", *PRESET, *weights, *shots, "-o", str(output)]) == 0
    with av.open(str(output)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 42


def test_bench_says_what_it_ran_on(cuda: torch.device, tiny_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *PRESET, "--weights", str(tiny_weights), "--seconds", "2"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["device"].startswith("cuda")
    assert torch.cuda.get_device_name() in result["hardware"]
    assert result["gpu_memory_mb"] > 0
    assert result["dtype"] == "bfloat16"
    assert result["end_to_end_fps"] > 0
