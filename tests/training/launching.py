"""Starting a module of these tests in processes of its own, one or several that find one another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch


def launch(call: str, out: Path, *, processes: int) -> subprocess.Popen[bytes]:
    """Run `call`, such as "codec_runs.run(...)", in so many processes."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import {call.split('.')[0]}; {call}"
    out.mkdir(exist_ok=True)
    (out / "worker.py").write_text(code)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launcher = torchrun if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, str(out / "worker.py")], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def assert_same_weights(a: Path, b: Path) -> None:
    """Both runs left weights.pt with the same tensors, to 1e-5."""
    weights = [torch.load(out / "weights.pt", weights_only=True) for out in (a, b)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=1e-5)
