"""Compare candidate latents by equal budgets: a codec, a DiT on lone frames, and what the probe reads in its pictures.

    python -m shotstream.recipes.compare_latents --out runs/compare --record docs/results/latents

Every candidate gets the same number of steps of the same cost: all have 12 x 20 latent cells, 60 tokens of the DiT.
Every step leaves a file behind, so the command can be stopped and repeated, and a repetition with everything done only
writes the record anew. What a person wrote under "What it means" in the record is kept.

N pictures, H W pixels, C latent channels, h w latent cells
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from shotstream import storyworld
from shotstream.engine.loading import default_precision
from shotstream.evaluation.metrics import Tally, paired_mean, sharpness
from shotstream.evaluation.report import circumstances, plain
from shotstream.evaluation.text_path import said_attributes
from shotstream.models.checkpoint import load_dit
from shotstream.models.codec import nothing, to_uint8
from shotstream.models.text import MiniLMEncoder
from shotstream.models.tiny_codec import TinyCodec
from shotstream.presets import PACKAGE_WEIGHTS, STORYWORLD
from shotstream.recipes import codec, latents, teacher
from shotstream.storyworld import WorldStory, visible
from shotstream.storyworld.probe import HEIGHT, WIDTH, Probe, ProbeScores, load_probe
from shotstream.storyworld.spec import FIRST_CHUNK_FRAMES
from shotstream.training.codec import heldout_clips, measure
from shotstream.training.codec_data import StoryworldSource
from shotstream.training.data import Batch, LatentLibrary, Sampler
from shotstream.training.randomness import generator_at, normal
from shotstream.training.teacher import TeacherStage
from shotstream.training.trainer import OptimiserConfig

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
MOMENT = FIRST_CHUNK_FRAMES - 1
"""Pixel frame of a shot that is looked at: the last of its first chunk, as in the probe's training."""
CLIP_FRAMES = 17
BATCH = 16
"""Pictures handled together."""
MEANING = "## What it means"
STOPPED = "stopped by a signal: the same command goes on"
PROBE = PACKAGE_WEIGHTS / "storyworld" / "probe.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A codec that might make the latents."""

    height: int
    width: int
    channels: int

    @property
    def stride(self) -> int:
        return self.height // 12

    @property
    def title(self) -> str:
        return f"{self.height}x{self.width} / {self.stride}, {self.channels} channels"


CANDIDATES = {
    "a": Candidate(height=192, width=320, channels=24),
    "b": Candidate(height=192, width=320, channels=48),
    "c": Candidate(height=96, width=160, channels=16),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The budget of every candidate."""

    out: str
    codec_steps: int = 300
    stories: int = 300
    dit_steps: int = 300
    batch_size: int = 32
    learning_rate: float = 2e-3
    pictures: int = 96
    """Opening shots of held-out stories."""
    sampling_steps: int = STORYWORLD.teacher_steps
    guidance_scale: float = STORYWORLD.guidance_scale
    clips: int = 12
    """Held-out clips for the PSNR."""
    compiled: bool = False
    precision: Literal["float32", "bfloat16"] = field(default_factory=lambda: default_precision(torch.device("cpu")))
    seed: int = 0


def run(comparison: Comparison) -> dict[str, Any]:
    """Everything measured, candidate by candidate."""
    stories = heldout_stories(comparison.pictures)
    renders = draw(stories, HEIGHT, WIDTH)
    probe, scores = load_probe(PROBE)
    tallies, edges = {"renders": answers(probe, scores, stories, renders)}, {"renders": sharpness(renders)}
    measured: dict[str, Any] = {}
    for name, candidate in CANDIDATES.items():
        folder = Path(comparison.out) / name
        measured[name] = measure_candidate(candidate, comparison, folder, stories)
        for kind, path in pictures_of(folder, comparison).items():
            frames = np.load(path)
            tallies[f"{kind}/{name}"] = answers(probe, scores, stories, frames)
            edges[f"{kind}/{name}"] = sharpness(frames)
    return {
        "config": asdict(comparison),
        "candidates": {name: asdict(candidate) for name, candidate in CANDIDATES.items()},
        "measured": measured,
        "read": {name: plain(tally.measures()) for name, tally in tallies.items()},
        "differences": differences(tallies),
        "sharpness": {name: round(value, 3) for name, value in edges.items()},
    }


def heldout_stories(count: int) -> list[WorldStory]:
    """Of one shot each: an opening says all that it shows."""
    return [storyworld.sample_story(number, num_shots=1, split="heldout") for number in range(count)]


def pictures_of(folder: Path, comparison: Comparison) -> dict[str, Path]:
    """Where a candidate's pictures lie: drawn at its own size, through its codec, samples."""
    names = {"drawn": "drawn", "codec": "codec", "samples": f"samples-{comparison.dit_steps}"}
    return {kind: folder / f"{name}.npy" for kind, name in names.items()}


def measure_candidate(
    candidate: Candidate, comparison: Comparison, folder: Path, stories: Sequence[WorldStory]
) -> dict[str, Any]:
    """Train its codec and a DiT on its latents, and leave the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = comparison.dit_steps
    return {
        "codec": once(folder / "codec.json", lambda: train_codec(candidate, comparison, folder)),
        "ceiling": once(folder / "ceiling.json", lambda: reconstruct(candidate, comparison, folder, stories)),
        "latents": once(folder / "latents.json", lambda: encode(candidate, comparison, folder)),
        "dit": once(folder / f"dit-{steps}.json", lambda: train_dit(comparison, folder)),
        "samples": once(folder / f"samples-{steps}.json", lambda: sample(comparison, folder, stories)),
    }


def once(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` found, with its time, from the file that says so; without one it is done and the file written."""
    if not path.is_file():
        log.info("%s begins", path.with_suffix(""))
        cpu_s, wall_s = time.process_time(), time.monotonic()
        found = work()
        times = {"cpu_s": round(time.process_time() - cpu_s, 1), "wall_s": round(time.monotonic() - wall_s, 1)}
        path.write_text(json.dumps(found | times | {"circumstances": circumstances()}, indent=1))
        log.info("%s: %s %s", path.with_suffix(""), times, found)
    known: dict[str, Any] = json.loads(path.read_text())
    return known


def train_codec(candidate: Candidate, comparison: Comparison, folder: Path) -> dict[str, Any]:
    """From principal components on, by the codec's own recipe; its PSNR at its own size."""
    metrics = codec.run(codec_recipe(candidate, comparison, folder))
    if metrics is None:
        raise RuntimeError(STOPPED)
    return {"steps": comparison.codec_steps, "psnr": rounded(metrics)}


def codec_recipe(candidate: Candidate, comparison: Comparison, folder: Path) -> codec.CodecRecipe:
    recipe = codec.config(str(folder / "codec"), small=candidate.stride == 8)
    optimiser = replace(recipe.trainer.optimisers["model"], warmup_steps=comparison.codec_steps // 10)
    trainer = replace(
        recipe.trainer,
        steps=comparison.codec_steps,
        optimisers={"model": optimiser},
        precision=comparison.precision,
        image_every=0,
    )
    return replace(
        recipe,
        trainer=trainer,
        codec=replace(recipe.codec, latent_channels=candidate.channels),
        statistics_clips=16,
        test_clips=comparison.clips,
        test_frames=CLIP_FRAMES,
        seed=comparison.seed,
    )


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("psnr_"): round(value, 2) for name, value in metrics.items() if "psnr" in name}


def reconstruct(
    candidate: Candidate, comparison: Comparison, folder: Path, stories: Sequence[WorldStory]
) -> dict[str, Any]:
    """The ceiling's pictures, and the PSNR of held-out clips at the screen's size."""
    made = load_codec(folder)
    drawn = draw(stories, candidate.height, candidate.width)
    np.save(folder / "drawn.npy", enlarged(drawn))
    np.save(folder / "codec.npy", enlarged(decode(made, encode_alone(made, drawn))))
    clips = heldout_clips(StoryworldSource(split="heldout"), comparison.clips, CLIP_FRAMES)
    metrics, _ = measure(made if candidate.height == HEIGHT else OnScreen(made), clips)
    return {"psnr": rounded(metrics), "parameters": sum(p.numel() for p in made.parameters())}


def load_codec(folder: Path) -> TinyCodec:
    return TinyCodec.load(folder / "codec" / "codec.safetensors")


class OnScreen(TinyCodec):
    """A codec of half the size, seen at the screen's: pixels are shrunk before it and enlarged after it."""

    def __init__(self, small: TinyCodec) -> None:
        super().__init__(small.config)
        self.load_state_dict(small.state_dict())

    def encode(self, pixels: Tensor) -> Tensor:
        halved = F.interpolate(pixels.flatten(0, 1), scale_factor=0.5, mode="area")
        return super().encode(halved.view(*pixels.shape[:2], *halved.shape[1:]))

    def decode_chunk(self, latents: Tensor, state: Any, *, between: Callable[[], None] = nothing) -> Tensor:
        return torch.from_numpy(enlarged(super().decode_chunk(latents, state, between=between)[0].numpy()))[None]


def encode(candidate: Candidate, comparison: Comparison, folder: Path) -> dict[str, Any]:
    """Lone frames of the training stories."""
    recipe = latents.LatentsRecipe(
        out=str(folder / "latents"),
        codec=str(folder / "codec" / "codec.safetensors"),
        stories=comparison.stories,
        context_frames=1,
        extra_frames=1,
        clips=0.0,
        roundtrip_share=0.0,
        height=candidate.height,
        width=candidate.width,
        precision=comparison.precision,
    )
    latents.run(recipe, threads=torch.get_num_threads())
    library = LatentLibrary(recipe.out)
    stored = np.concatenate(library.frame["latent"].parts).astype(np.float32)
    spread = np.sort(stored.std((0, 2, 3)))[::-1]
    return {"frames": len(stored), "channel_sd": [round(float(sd), 3) for sd in spread]}


def train_dit(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """The teacher's recipe for lone frames, from scratch. At a constant rate, so that more steps can be asked for."""
    outcome = teacher.run(dit_recipe(comparison, folder))
    if outcome.reason == "stopped":
        raise RuntimeError(STOPPED)
    return {
        "steps": outcome.step,
        "loss": round(outcome.logs["loss"], 4),
        "frames_seen": outcome.step * comparison.batch_size,
    }


def dit_recipe(comparison: Comparison, folder: Path) -> teacher.TeacherRecipe:
    recipe = teacher.config("frames", data=str(folder / "latents"), out=str(folder / "dit"))
    optimiser = OptimiserConfig(kind="muon", learning_rate=comparison.learning_rate, warmup_steps=20)
    trainer = replace(
        recipe.trainer,
        steps=comparison.dit_steps,
        batch_size=comparison.batch_size,
        precision=comparison.precision,
        optimisers={"model": optimiser},
    )
    return replace(recipe, trainer=trainer, compiled=comparison.compiled, seed=comparison.seed)


@torch.no_grad()
def sample(comparison: Comparison, folder: Path, stories: Sequence[WorldStory]) -> dict[str, Any]:
    """Pictures of the held-out captions by guided Euler steps."""
    recipe = dit_recipe(comparison, folder)
    library = LatentLibrary(recipe.data)
    model = load_dit(folder / "dit" / "weights.safetensors").float().eval()
    stage = TeacherStage(model, Sampler(library, recipe.sampler), recipe.flow)
    text = MiniLMEncoder(length=STORYWORLD.text.length, layers=STORYWORLD.text.layers)
    made = []
    steps, scale = comparison.sampling_steps, comparison.guidance_scale
    for first in range(0, len(stories), BATCH):
        part = stories[first : first + BATCH]
        noise = [normal(generator_at("compare", story.seed), (1, *library.latent_shape)) for story in part]
        data = lone_frames(text.encode([story.captions(0, 0) for story in part]), torch.stack(noise))
        made.append(stage.sample(data, torch.stack(noise), num_steps=steps, guidance_scale=scale))
    clean = torch.cat(made)[:, 0]
    np.save(pictures_of(folder, comparison)["samples"], enlarged(decode(load_codec(folder), clean)))
    return {"pictures": len(stories), "latent_sd": round(clean.std().item(), 3)}


def lone_frames(text_NLD: Tensor, noise_N1CHW: Tensor) -> Batch:
    """One picture for each caption and nothing remembered."""
    count = len(text_NLD)
    return Batch(
        context=noise_N1CHW[:, :0],
        target=torch.zeros_like(noise_N1CHW),
        shot_ids=torch.ones(count, 1, dtype=torch.long),
        text=torch.cat([torch.zeros_like(text_NLD[:1]), text_NLD]),
        caption_ids=torch.arange(1, count + 1)[:, None],
        weight=torch.ones(count, 1, 1, 1, 1),
    )


# -- pictures ----------------------------------------------------------------------------------------------------------


def draw(stories: Sequence[WorldStory], height: int, width: int) -> Pixels:
    """The looked-at frame of every story, [N, H, W, 3]."""
    frames = [storyworld.render_frame(story.shots[0], MOMENT, height=height, width=width) for story in stories]
    return np.stack([frame.pixels for frame in frames])


def encode_alone(made: TinyCodec, pixels_NHWC: Pixels) -> Tensor:
    """[N, C, h, w], each picture alone."""
    parts = torch.split(torch.from_numpy(pixels_NHWC), BATCH)
    return torch.cat([made.encode_frames(part[:, None])[:, 0] for part in parts])


@torch.no_grad()
def decode(made: TinyCodec, latents_NCHW: Tensor) -> Pixels:
    """[N, H, W, 3], each picture alone."""
    parts = [to_uint8(made.decode(part[:, None]))[:, 0] for part in torch.split(latents_NCHW, BATCH)]
    return torch.cat(parts).numpy()


def enlarged(frames_NHWC: Pixels) -> Pixels:
    """At the screen's size, bicubically; as they are if they have it."""
    if frames_NHWC.shape[1:3] == (HEIGHT, WIDTH):
        return frames_NHWC
    x_NCHW = torch.from_numpy(frames_NHWC).movedim(-1, 1).float() / 255
    large = F.interpolate(x_NCHW, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)
    return to_uint8(large[None])[0].numpy()


# -- reading -----------------------------------------------------------------------------------------------------------


def answers(probe: Probe, scores: ProbeScores, stories: Sequence[WorldStory], frames_NHWC: Pixels) -> Tally:
    """Does each picture show what its caption says? `said` counts only what the probe reads well from renders."""
    tally = Tally()
    parts = torch.split(torch.from_numpy(frames_NHWC)[:, None], BATCH)
    readings = [reading for part in parts for reading in probe.read(part)]
    for story, reading in zip(stories, readings, strict=True):
        spec = story.shots[0]
        labels = spec.labels(0)
        for name in sorted(said_attributes(story, 0, 0) - {"camera_motion"}):
            if not visible(spec, name, 0):
                continue
            tally.add(name, story.seed, labels[name], reading[name])
            if scores.scored(name, spec.framing, still=True):
                tally.add("said", story.seed, f"{name} {labels[name]}", f"{name} {reading[name]}")
    return tally


def differences(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """Paired over stories, of what was said: every candidate's samples against those of every later one."""
    names = list(CANDIDATES)
    said = {name: tallies[f"samples/{name}"].per_story()["said"] for name in names}
    pairs = {f"{x} - {y}": paired_mean(said[x], said[y]) for x, y in itertools.combinations(names, 2)}
    return plain({pair: difference for pair, difference in pairs.items() if difference})


# -- the record --------------------------------------------------------------------------------------------------------


def report(results: Mapping[str, Any]) -> str:
    """Tables for people."""
    names = list(results["candidates"])
    titles = {name: Candidate(**values).title for name, values in results["candidates"].items()}
    measured, read, config = results["measured"], results["read"], results["config"]
    last = measured[names[-1]]["samples"]["circumstances"]
    minutes = {name: {k: v["cpu_s"] / 60 for k, v in stages.items()} for name, stages in measured.items()}
    small = read[f"drawn/{names[-1]}"]["said"]
    rows = [
        ["CPU minutes: codec, latents, DiT", *(_times(minutes[name]) for name in names)],
        ["codec parameters", *(f"{measured[name]['ceiling']['parameters'] / 1e6:.2f} M" for name in names)],
        *(
            [f"PSNR {part}, {where}, dB", *(f"{measured[name][stage]['psnr'][part]:.2f}" for name in names)]
            for stage, where in (("ceiling", f"{HEIGHT}x{WIDTH}"), ("codec", "own size"))
            for part in ("clip", "face", "lone")
        ),
        ["largest and smallest sd of a channel", *(_spread(measured[name]["latents"]) for name in names)],
        ["DiT loss at the end (not comparable)", *(f"{measured[name]['dit']['loss']:.3f}" for name in names)],
        ["sharpness: renders, codec, samples", *(_sharpness(results["sharpness"], name) for name in names)],
    ]
    lines = [
        "# Which latents: equal budgets, read by the probe",
        "",
        f"`{last['command'].split(' --only')[0]}`; {last['hardware']}, {last['date']}, commit {last['commit']}.",
        "",
        f"Each candidate: a codec from principal components, {config['codec_steps']} steps; lone frames of "
        f"{config['stories']} training stories; the storyworld DiT from scratch on them, {config['dit_steps']} steps "
        f"of {config['batch_size']} (Muon {config['learning_rate']:g}, shift 3, {config['precision']}); "
        f"{config['pictures']} pictures of openings of held-out stories, {config['sampling_steps']} steps, guidance "
        f"{config['guidance_scale']:g}. All have 12 x 20 latent cells, 60 tokens. Small pictures are enlarged "
        "bicubically before anything is read or compared at the screen's size.",
        "",
        *_table(["", *(titles[name] for name in names)], rows),
        "",
        "What pictures show of what their captions say, in percent, with 95% intervals over stories. *Said* pools what "
        "the probe reads well from renders. *Codec*: renders through that codec, the ceiling. *Chance*: the answers "
        "about the samples dealt out at random.",
        "",
        *_table(
            ["", "renders", *(f"{kind} {name}" for kind in ("codec", "samples") for name in names), "chance", "asked"],
            [_reading_row(attribute, read, names) for attribute in _attributes(read)],
        ),
        "",
        f"Renders at 96x160, enlarged, without any codec: {_percent(small)} of what is said.",
        "",
        "Paired differences of *said* over stories, samples of one candidate minus those of another, in points: "
        + "; ".join(f"{pair}: {_percent(value)}" for pair, value in results["differences"].items())
        + ".",
        "",
        "![The same captions: render, through the codecs, samples](latents.jpg)",
        "",
    ]
    return "\n".join(lines)


def _times(minutes: Mapping[str, float]) -> str:
    return ", ".join(f"{minutes[stage]:.1f}" for stage in ("codec", "latents", "dit"))


def _spread(found: Mapping[str, Any]) -> str:
    return f"{found['channel_sd'][0]:.2f}, {found['channel_sd'][-1]:.2f}"


def _sharpness(found: Mapping[str, float], name: str) -> str:
    return ", ".join(f"{found[kind]:.2f}" for kind in ("renders", f"codec/{name}", f"samples/{name}"))


def _attributes(read: Mapping[str, Any]) -> list[str]:
    """Said first, then what is asked most."""
    return sorted(read["renders"], key=lambda name: (name != "said", -read["renders"][name]["count"]))


def _reading_row(attribute: str, read: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    kinds = ["renders", *(f"{kind}/{name}" for kind in ("codec", "samples") for name in names)]
    chance = f"{100 * np.mean([read[f'samples/{name}'][attribute]['chance'] for name in names]):.0f}"
    shares = [_percent(read[kind][attribute]) for kind in kinds]
    # Answers pooled over attributes are not dealt out among them.
    return [attribute, *shares, "" if attribute == "said" else chance, str(read["renders"][attribute]["count"])]


def _percent(measure: Mapping[str, Any]) -> str:
    return f"{100 * measure['value']:.0f} ({100 * measure['low']:.0f} to {100 * measure['high']:.0f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def sheet(comparison: Comparison, count: int = 8, width: int = 240) -> Image.Image:
    """A row per caption: the render, what the codecs make of it, what the DiTs make of its caption."""
    stories = heldout_stories(count)
    names, height = list(CANDIDATES), width * HEIGHT // WIDTH
    columns = {"render": draw(stories, HEIGHT, WIDTH)}
    for kind in ("codec", "samples"):
        columns |= {f"{kind} {n}": np.load(pictures_of(Path(comparison.out) / n, comparison)[kind]) for n in names}
    bar, font = 20, ImageFont.load_default(13)
    image = Image.new("RGB", (width * len(columns), bar + count * (bar + height)), (28, 28, 36))
    pen = ImageDraw.Draw(image)
    for column, (title, frames) in enumerate(columns.items()):
        pen.text((column * width + 5, 3), title, fill="white", font=font)
        for row in range(count):
            picture = Image.fromarray(frames[row]).resize((width, height), Image.Resampling.LANCZOS)
            image.paste(picture, (column * width, bar + row * (bar + height) + bar))
    for row, story in enumerate(stories):
        pen.text((5, bar + row * (bar + height) + 3), story.captions(0, 0), fill="white", font=font)
    return image


def write_record(path: Path, results: Mapping[str, Any], picture: Image.Image) -> None:
    """PATH.json, PATH.md and PATH.jpg. A person's own section at the end of the text stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    picture.save(path.with_suffix(".jpg"), quality=85)
    text = path.with_suffix(".md")
    before = text.read_text() if text.is_file() else ""
    kept = before[before.index(MEANING) :] if MEANING in before else ""
    text.write_text(report(results) + (f"\n{kept}" if kept else ""))


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--out", required=True, help="folder of codecs, latents, networks and pictures")
    flags.add_argument("--record", type=Path, help="write RECORD.json, RECORD.md and RECORD.jpg")
    for name in ("codec-steps", "stories", "dit-steps", "pictures", "sampling-steps", "clips", "seed"):
        flags.add_argument(f"--{name}", type=int)
    flags.add_argument("--precision", choices=("float32", "bfloat16"), help="default: what the machine is fast in")
    flags.add_argument("--compile", action="store_true", help="torch.compile the DiT")
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--only", choices=tuple(CANDIDATES), help="just this candidate, beside others, and no record")
    given = vars(flags.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(given.pop("threads"))
    record, compiled, only = given.pop("record"), given.pop("compile"), given.pop("only")
    comparison = Comparison(compiled=compiled, **{name: value for name, value in given.items() if value is not None})
    if only is not None:
        measure_candidate(
            CANDIDATES[only], comparison, Path(comparison.out) / only, heldout_stories(comparison.pictures)
        )
        return 0
    results = run(comparison)
    if record is not None:
        write_record(record, results, sheet(comparison))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
