"""Does the model draw anew, or from memory of what it was trained on?

    python -m shotstream.evaluation.novelty --data latents -o docs/results/nearest.png

For 24 samples, the nearest of all training latents. Held-out renders of the same shots, which were certainly not
trained on, say how near is near: a model that recites comes much nearer than they do.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from shotstream.engine.stream import Engine
from shotstream.evaluation.film import Pixels, Take, film, rendered
from shotstream.evaluation.metrics import mean_value
from shotstream.models.codec import Codec
from shotstream.storyworld import sample_story
from shotstream.training.data import LatentLibrary

log = logging.getLogger(__name__)

SAMPLES = 24
RECITED = 0.5
"""A sample nearer than this share of what its held-out render is counts as learnt by heart."""
BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Samples beside what they come nearest to."""

    samples: Pixels
    """[N, H, W, 3], first frames."""
    latents: Tensor
    """[N, C, h, w], of the nearest training frames."""
    distance: NDArray[np.float64]
    """Root mean square difference of latents, by sample."""
    heldout_distance: NDArray[np.float64]
    """The same for the held-out render of each sample's shot."""


def find_nearest(engine: Engine, library: LatentLibrary, count: int = SAMPLES) -> Nearest:
    """Film the first chunk of held-out stories and look each up among all frames of the library."""
    size = {"height": engine.preset.height, "width": engine.preset.width, "num_chunks": 1}
    stories = [sample_story(number, num_shots=1, split="heldout") for number in range(count)]
    made = np.stack([film(engine, s, Take(seed=s.seed, num_chunks=1))[0].chunks[0][0] for s in stories])
    drawn = np.stack([rendered(story, 0, **size).chunks[0][0] for story in stories])
    latents = torch.cat([_encoded(engine.codec, made), _encoded(engine.codec, drawn)])
    distance, index = nearest(latents, library)
    found = torch.from_numpy(library.frame["latent"].rows(index[:count]).astype(np.float32))
    return Nearest(samples=made, latents=found, distance=distance[:count], heldout_distance=distance[count:])


@torch.no_grad()
def _encoded(codec: Codec, frames_NHWC: Pixels) -> Tensor:
    return codec.encode_frames(torch.from_numpy(frames_NHWC)[None])[0].float().cpu()


def nearest(latents_NChw: Tensor, library: LatentLibrary) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Root mean square distance to the nearest frame of the library, and its row, for each of N latents."""
    table = library.frame["latent"]
    wanted = latents_NChw.flatten(1)
    best, where = torch.full((len(wanted),), float("inf")), torch.zeros(len(wanted), dtype=torch.long)
    for start in range(0, len(table), BLOCK):
        rows = range(start, min(start + BLOCK, len(table)))
        known = torch.from_numpy(table.rows(list(rows)).astype(np.float32)).flatten(1)
        squares, index = torch.cdist(wanted, known).min(1)
        nearer = squares < best
        best, where = torch.where(nearer, squares, best), torch.where(nearer, start + index, where)
    return (best / wanted.shape[1] ** 0.5).double().numpy(), where.numpy()


def novelty(engine: Engine, data: Path | str, count: int = SAMPLES) -> dict[str, Any]:
    """Plain values for the results: both distances with their intervals, and the share of samples learnt by heart."""
    found = find_nearest(engine, LatentLibrary(data, text_length=engine.preset.dit.text_len), count)
    return summary(found)


def summary(found: Nearest) -> dict[str, Any]:
    ratio = found.distance / found.heldout_distance
    distances = {"sample": found.distance, "heldout_render": found.heldout_distance, "ratio": ratio}
    measures = {name: asdict(mean_value(list(enumerate(values.tolist())))) for name, values in distances.items()}
    return {"samples": len(ratio), **measures, "learnt_by_heart": float((ratio < RECITED).mean())}


@torch.no_grad()
def picture(found: Nearest, codec: Codec, columns: int = 4) -> Pixels:
    """Each sample above the training frame that it comes nearest to."""
    known = (
        (codec.decode(found.latents[:, None].to(codec.device))[:, 0].movedim(1, -1) * 255).round().byte().cpu().numpy()
    )
    pairs = np.concatenate([found.samples, known], axis=1)
    blank = np.zeros_like(pairs[:1])
    padded = np.concatenate([pairs, *[blank] * (-len(pairs) % columns)])
    rows = [np.concatenate(padded[i : i + columns], axis=1) for i in range(0, len(padded), columns)]
    return np.concatenate(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Write a picture of samples and their nearest training frames, and log the distances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="latents that were trained on")
    parser.add_argument("--weights", type=Path, help="a folder, or a file with the student")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/nearest.png"))
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from shotstream.engine.loading import load

    engine = load("storyworld", weights=options.weights)
    found = find_nearest(engine, LatentLibrary(options.data, text_length=engine.preset.dit.text_len))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(found, engine.codec)).save(options.output)
    log.info("%s", summary(found))


if __name__ == "__main__":
    main()
