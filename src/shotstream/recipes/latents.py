"""Render storyworld and encode it once, so that training never waits for pixels.

    python -m shotstream.recipes.latents --codec codec.safetensors --out latents --stories 8000 --workers 2

Per story: of every shot the frames that the memory rule may ask for (half of them also after a round trip through the
codec, which is what a live stream remembers) and a few others; of some shots the whole clip; of all the captions.
Shards appear one by one and finished ones are kept, so the command can be stopped and repeated, and training can begin
on the first of them.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from shotstream import storyworld
from shotstream.children import end_with_parent
from shotstream.engine.loading import default_precision
from shotstream.models.codec import Codec, to_uint8
from shotstream.models.text import MiniLMEncoder, TextEncoder
from shotstream.models.tiny_codec import TinyCodec
from shotstream.presets import STORYWORLD
from shotstream.recipes.runs import keep_settings
from shotstream.storyworld.sampler import WorldStory
from shotstream.storyworld.spec import NOBODY, ShotSpec
from shotstream.training.data import Captions, chunk_of_pixel, frames_ever_asked_for, write_shard
from shotstream.training.randomness import generator_at

log = logging.getLogger(__name__)

CHUNKS = 7
SHOT_FRAMES = 81
"""Pixel frames of a shot of 7 chunks of 3 latent frames at 4 pixel frames each, the first latent being one frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentsRecipe:
    """What is rendered and kept."""

    out: str
    codec: str
    stories: int = 8000
    first_seed: int = 0
    stories_per_shard: int = 50
    split: Literal["train", "heldout"] = "train"
    context_frames: int = 6
    extra_frames: int = 2
    """Frames per shot, anywhere in it, beyond those that memory asks for."""
    roundtrip_share: float = 0.5
    clips: float = 1.0
    """Whole clips per story on average; 0.4 takes one of 40% of the stories."""
    steered_weight: float = 1.0
    """How many times likelier a clip is of a shot that is steered than of another."""
    two_people: bool = False
    """Leave out stories in which no two people share a shot, which are four in five."""
    negative_prompt: str = ""
    """Encoded beside the captions, for guidance to steer away from."""
    height: int = 192
    width: int = 320
    text_length: int = STORYWORLD.text.length
    text_layers: int | None = STORYWORLD.text.layers
    encode_batch: int = 16
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    @property
    def num_shards(self) -> int:
        return -(-self.stories // self.stories_per_shard)


@dataclass
class _Rows:
    """Columns of a table under construction."""

    columns: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, **values: Any) -> None:
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)


class ShardMaker:
    """Renders and encodes one shard at a time."""

    def __init__(self, recipe: LatentsRecipe, codec: Codec, text: TextEncoder) -> None:
        self.recipe, self.codec, self.text = recipe, codec, text
        self.latent_size = (recipe.height // codec.spatial_stride, recipe.width // codec.spatial_stride)

    @torch.no_grad()
    def make(self, shard: int) -> None:
        """Write shard number `shard`, if any story belongs to it."""
        frames, clips, shots, captions, labels = _Rows(), _Rows(), _Rows(), Captions(), []
        for seed, story in stories_of(self.recipe, shard):
            self._add_shots(story, seed, shots, captions)
            self._add_frames(story, seed, frames, captions)
            self._add_clips(story, seed, clips, captions)
            labels.append({"story": seed, "shots": [spec.labels(0) for spec in story.shots]})
        if not labels:
            return
        if self.recipe.negative_prompt:
            captions.id_of(self.recipe.negative_prompt)
        write_shard(
            Path(self.recipe.out) / f"shard-{shard:05d}",
            frames={name: np.stack(column) for name, column in frames.columns.items()},
            clips={name: np.stack(column) for name, column in clips.columns.items()} or self._no_clips(),
            shots={name: np.stack(column) for name, column in shots.columns.items()},
            captions=captions.texts,
            text_states=self._text_states(captions.texts),
            stories=labels,
        )

    def _add_shots(self, story: Any, seed: int, rows: _Rows, captions: Captions) -> None:
        for shot in range(len(story.shots)):
            ids = np.array([captions.id_of(story.captions(shot, chunk)) for chunk in range(CHUNKS)], np.int32)
            rows.add(story=np.int32(seed), shot=np.int16(shot), caption=ids)

    def _add_frames(self, story: Any, seed: int, rows: _Rows, captions: Captions) -> None:
        rng = generator_at("latents", seed)
        rendered: list[tuple[int, int, bool, Any]] = []
        for shot, spec in enumerate(story.shots):
            for p, twice in self._chosen_frames(rng, shot, len(story.shots)):
                picture = storyworld.render_frame(spec, p, height=self.recipe.height, width=self.recipe.width)
                rendered.append((shot, p, twice, picture))
        direct = self._encode_frames(np.stack([picture.pixels for *_, picture in rendered]))
        again = self._roundtrip(direct, [twice for _, _, twice, _ in rendered])
        for (shot, p, twice, picture), latent in zip(rendered, direct, strict=True):
            shared = {"story": np.int32(seed), "shot": np.int16(shot), "pixel_frame": np.int16(p)}
            shared |= {"caption": np.int32(captions.id_of(story.captions(shot, chunk_of_pixel(p))))}
            shared |= {"important": self._important([picture])}
            rows.add(**shared, roundtrip=np.bool_(False), latent=latent)
            if twice:
                rows.add(**shared, roundtrip=np.bool_(True), latent=next(again))

    def _chosen_frames(self, rng: np.random.Generator, shot: int, num_shots: int) -> list[tuple[int, bool]]:
        """(pixel frame, whether to keep it round-tripped too)."""
        asked = frames_ever_asked_for(shot, num_shots, self.recipe.context_frames, SHOT_FRAMES)
        chosen = {p: bool(rng.random() < self.recipe.roundtrip_share) for p in asked}
        others = [0, *rng.choice(SHOT_FRAMES, self.recipe.extra_frames, replace=False).tolist()]
        return sorted((dict.fromkeys(others, False) | chosen).items())

    def _add_clips(self, story: Any, seed: int, rows: _Rows, captions: Captions) -> None:
        for shot in chosen_clips(story.shots, seed, clips=self.recipe.clips, steered_weight=self.recipe.steered_weight):
            clip = storyworld.render_shot(
                story.shots[shot], num_frames=SHOT_FRAMES, height=self.recipe.height, width=self.recipe.width
            )
            rows.add(
                story=np.int32(seed),
                shot=np.int16(shot),
                caption=np.array([captions.id_of(story.captions(shot, chunk)) for chunk in range(CHUNKS)], np.int32),
                important=self._important_clip(clip),
                latent=self._encode_clip(clip.pixels),
            )

    def _encode_frames(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        """[N, H, W, 3] to [N, C, h, w], each picture alone."""
        parts = []
        for start in range(0, len(pixels), self.recipe.encode_batch):
            frames = torch.from_numpy(pixels[start : start + self.recipe.encode_batch]).to(self.recipe.device)
            with self._precision():
                parts.append(self.codec.encode_frames(frames[:, None])[:, 0].float().cpu())
        return torch.cat(parts).numpy().astype(np.float16)

    def _roundtrip(self, latents: NDArray[np.float16], wanted: Sequence[bool]) -> Iterator[NDArray[np.float16]]:
        chosen = torch.from_numpy(latents[np.array(wanted, dtype=bool)]).float()
        for part in torch.split(chosen, self.recipe.encode_batch):
            with self._precision():
                pixels = self.codec.decode(part[:, None].to(self.recipe.device))
                yield from self._encode_frames(to_uint8(pixels)[:, 0].cpu().numpy())

    def _encode_clip(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        """[T, H, W, 3] to [F, C, h, w], a few frames at a time."""
        state = self.codec.new_encoder_state()
        video = torch.from_numpy(pixels).to(self.recipe.device).movedim(-1, 1)[None]
        parts = []
        for frames in torch.split(video, [9, *[12] * (CHUNKS - 1)], dim=1):
            with self._precision():
                parts.append(self.codec.encode_chunk(frames.float() / 255, state).float().cpu())
        return torch.cat(parts, dim=1)[0].numpy().astype(np.float16)

    def _precision(self) -> torch.autocast:
        device = torch.device(self.recipe.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    def _important(self, pictures: Sequence[Any]) -> NDArray[np.bool_]:
        """[h, w] latent cells that any face or mark of these pictures touches."""
        boxes = [box for picture in pictures for box in (*picture.face_boxes, *picture.mark_boxes)]
        return cells_under(boxes, self.latent_size, self.codec.spatial_stride)

    def _important_clip(self, clip: Any) -> NDArray[np.bool_]:
        """[F, h, w]: a latent frame stands for pixel frame 0, then for four each."""
        boxes = [[*faces, *marks] for faces, marks in zip(clip.face_boxes, clip.mark_boxes, strict=True)]
        groups = [boxes[0], *([*chain(*boxes[start : start + 4])] for start in range(1, len(boxes), 4))]
        return np.stack([cells_under(group, self.latent_size, self.codec.spatial_stride) for group in groups])

    def _text_states(self, captions: Sequence[str]) -> torch.Tensor:
        parts = [self.text.encode(captions[i : i + 32]).cpu() for i in range(0, len(captions), 32)]
        return torch.cat(parts)

    def _no_clips(self) -> dict[str, NDArray[Any]]:
        frames, size = CHUNKS * 3, self.latent_size
        return {
            "story": np.zeros(0, np.int32),
            "shot": np.zeros(0, np.int16),
            "caption": np.zeros((0, CHUNKS), np.int32),
            "important": np.zeros((0, frames, *size), np.bool_),
            "latent": np.zeros((0, frames, self.codec.latent_channels, *size), np.float16),
        }


def stories_of(recipe: LatentsRecipe, shard: int) -> Iterator[tuple[int, WorldStory]]:
    """Seed and story of all that belong into a shard, in order."""
    first = recipe.first_seed + shard * recipe.stories_per_shard
    for seed in range(first, min(first + recipe.stories_per_shard, recipe.first_seed + recipe.stories)):
        story = storyworld.sample_story(seed, split=recipe.split)
        if not recipe.two_people or any(spec.second_character != NOBODY for spec in story.shots):
            yield seed, story


def chosen_clips(shots: Sequence[ShotSpec], seed: int, *, clips: float, steered_weight: float = 1.0) -> list[int]:
    """Which shots of a story become whole clips; `clips` of them on average."""
    rng = generator_at("clips", seed)
    count = min(int(clips + rng.random()), len(shots))
    weights = np.array([steered_weight if spec.steers else 1.0 for spec in shots])
    # Even chances draw other shots than none given: libraries made without the weight stay as they are.
    chance = None if steered_weight == 1 else weights / weights.sum()
    return sorted(rng.choice(len(shots), count, replace=False, p=chance).tolist())


def cells_under(boxes: Sequence[Sequence[float]], size: tuple[int, int], stride: int) -> NDArray[np.bool_]:
    """Mark the cells of a [h, w] grid that boxes (x0, y0, x1, y1 in pixels) overlap."""
    cells = np.zeros(size, np.bool_)
    for x0, y0, x1, y1 in boxes:
        rows = slice(max(0, int(y0 // stride)), max(0, int(-(-y1 // stride))))
        columns = slice(max(0, int(x0 // stride)), max(0, int(-(-x1 // stride))))
        cells[rows, columns] = True
    return cells


def make_shards(recipe: LatentsRecipe, shards: Sequence[int], *, until: float | None = None, threads: int = 1) -> int:
    """Make the missing shards in order, none begun after `until` (time.monotonic). Returns how many."""
    torch.set_num_threads(threads)
    codec = TinyCodec.load(recipe.codec).to(recipe.device)
    maker = ShardMaker(
        recipe, codec, MiniLMEncoder(length=recipe.text_length, layers=recipe.text_layers, device=recipe.device)
    )
    made = 0
    for shard in shards:
        if until is not None and time.monotonic() > until:
            break
        if (Path(recipe.out) / f"shard-{shard:05d}").is_dir():
            continue
        began = time.monotonic()
        maker.make(shard)
        made += 1
        log.info("shard %d of %d in %.1f s", shard + 1, recipe.num_shards, time.monotonic() - began)
    return made


def run(recipe: LatentsRecipe, *, workers: int = 1, threads: int = 1, minutes: float | None = None) -> None:
    """Make all shards, spread over processes; more stories may be added later.

    Raises ValueError if the shards that are there were made otherwise, or the last of them is not full.
    """
    settings = Path(recipe.out) / "settings.json"
    made = json.loads(settings.read_text())["stories"] if settings.is_file() else 0
    if made < recipe.stories and made % recipe.stories_per_shard:
        raise ValueError(
            f"{recipe.out} was begun for {made} stories, and its last shard is not full: give another --out"
        )
    keep_settings(Path(recipe.out), replace(recipe, stories=max(made, recipe.stories)), free={"stories"})
    until = None if minutes is None else time.monotonic() + 60 * minutes
    if workers == 1:
        make_shards(recipe, range(recipe.num_shards), until=until, threads=threads)
        return
    context = multiprocessing.get_context("spawn")
    options = {"until": until, "threads": threads}
    shares = [range(w, recipe.num_shards, workers) for w in range(workers)]
    processes = [context.Process(target=_work, args=(recipe, share), kwargs=options) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {workers} workers failed, see their messages above; finished shards are kept"
        )


def _work(recipe: LatentsRecipe, shards: Sequence[int], *, until: float | None, threads: int) -> None:
    end_with_parent()
    _log_to_terminal()
    make_shards(recipe, shards, until=until, threads=threads)


def _log_to_terminal() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--codec", required=True, help="a trained codec")
    flags.add_argument("--out", required=True, help="folder of shards")
    flags.add_argument("--stories", type=int, default=8000)
    flags.add_argument("--first-seed", type=int, default=0)
    flags.add_argument("--stories-per-shard", type=int, default=50)
    flags.add_argument("--split", choices=("train", "heldout"), default="train")
    flags.add_argument("--clips", type=float, default=1.0, help="whole clips per story on average")
    flags.add_argument(
        "--steered-weight", type=float, default=1.0, help="how many times likelier clips are of steered shots"
    )
    flags.add_argument(
        "--two-people", action="store_true", help="only those of the stories in which two people share a shot"
    )
    flags.add_argument("--extra-frames", type=int, default=2, help="frames per shot beyond those memory asks for")
    flags.add_argument("--negative-prompt", default="", help="encode this too, for guidance to steer away from")
    flags.add_argument("--height", type=int, default=192)
    flags.add_argument("--width", type=int, default=320)
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="of the codec; default: what the device is fast in"
    )
    flags.add_argument("--workers", type=int, default=1, help="processes")
    flags.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    flags.add_argument("--minutes", type=float, help="begin no shard after this long")
    given = vars(flags.parse_args(arguments))
    _log_to_terminal()
    options = {name: given.pop(name) for name in ("workers", "threads", "minutes")}
    given["precision"] = given["precision"] or default_precision(torch.device(given["device"]))
    run(LatentsRecipe(**given), **options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
