"""The `shotstream` command: thin verbs over the library.

Results go to stdout, progress and notices to stderr. What a user can get wrong ends in one line and exit code 2.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import json
import logging
import math
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from shotstream.story import CHUNKS_PER_SHOT, Shot, Steer, Story, read_reference_csv, read_story

if TYPE_CHECKING:
    from shotstream.engine.stream import Engine

BAD_INPUT = 2
INTERRUPTED = 130

console = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    # How long two threads spin as they wait for each other; read when torch is loaded. By default they stand still
    # beside other work (12 s of film took over a minute to decode), without any an idle machine loses a third of its
    # speed (18 frames/s instead of 26), with this nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options, rest = _parser().parse_known_args(arguments)
    if rest and not options.passes_arguments:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        verb: Callable[[argparse.Namespace, list[str]], None] = options.verb
        verb(options, rest)
    except KeyboardInterrupt:
        console.print("stopped")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        sys.stderr.write(f"shotstream: error: {_one_line(error)}\n")
        return BAD_INPUT
    return 0


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (see `{self.prog} --help`)\n")


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        way_out = ": make room there, or write elsewhere" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.filename}: {error.strerror}{way_out}"
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="shotstream", description="Direct a video while it is being made.")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    parser.set_defaults(passes_arguments=False)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_generate(verbs)
    _add_bench(verbs)
    _add_serve(verbs)
    _add_weights(verbs)
    _add_dispatch(verbs, "world", _world, "draw a contact sheet and a clip of a story of the drawn world")
    _add_dispatch(verbs, "train", _train, "run a training recipe: `shotstream train RECIPE --help`")
    _add_dispatch(verbs, "evaluate", _evaluate, "measure what a model makes")
    return parser


def _add_generate(verbs: argparse._SubParsersAction[_Parser]) -> None:
    parser = verbs.add_parser("generate", help="film a story into an mp4", description=_generate.__doc__)
    parser.set_defaults(verb=_generate)
    parser.add_argument("story", nargs="?", type=Path, help="a story (.yaml, .json) or a table of stories (.csv)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the mp4 to write")
    parser.add_argument("--shot", action="append", default=[], metavar="CAPTION", help="a shot; repeat for more")
    parser.add_argument(
        "--steer",
        action="append",
        default=[],
        metavar="SHOT:CHUNK:TEXT",
        help="an instruction inside a shot, for example 0:3:'now make him look surprised'; both count from 0",
    )
    parser.add_argument("--global", dest="global_caption", metavar="CAPTION", help="what holds for all shots")
    parser.add_argument("--chunks", type=int, help=f"length of every shot (a full shot has {CHUNKS_PER_SHOT} chunks)")
    parser.add_argument("--seed", type=int, help="default: the story's, else 0")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also write a contact sheet, one row per shot")
    parser.add_argument("--model", choices=("student", "teacher"), default="student")
    parser.add_argument("--steps", type=int, help="denoising steps of the teacher; default: the preset's")
    _add_preset_options(parser)


def _add_bench(verbs: argparse._SubParsersAction[_Parser]) -> None:
    parser = verbs.add_parser("bench", help="measure speed, latency and memory", description=_bench.__doc__)
    parser.set_defaults(verb=_bench)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(model="student", steps=None)  # the teacher is not live
    _add_preset_options(parser)


def _add_serve(verbs: argparse._SubParsersAction[_Parser]) -> None:
    parser = verbs.add_parser(
        "serve",
        help="direct a story live in a browser",
        description=_serve.__doc__,
        epilog="A story file is played live with POST /api/stories/NAME/play, the file as the body; all routes are "
        "described at /openapi.json.",
    )
    parser.set_defaults(verb=_serve, model="student", steps=None)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--open", action="store_true", help="open the page in a browser where there is a display")
    parser.add_argument(
        "--token-file",
        type=Path,
        help="a file with the directors' token; default: SHOTSTREAM_TOKEN, or a new one where others can connect",
    )
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name of this server")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="a page from elsewhere")
    parser.add_argument("--certfile", type=Path, help="for TLS")
    parser.add_argument("--keyfile", type=Path, help="for TLS")
    parser.add_argument("--writer", choices=("template", "passthrough", "openai"), default="template")
    parser.add_argument("--writer-url", metavar="URL", help="openai: the endpoint, for example http://host:11434/v1")
    parser.add_argument("--writer-model", metavar="NAME", help="openai: the model; its key is OPENAI_API_KEY")
    parser.add_argument("--slots", type=int, help="how many stories may be live (default: as many as are fast enough)")
    parser.add_argument("--max-viewers", type=int, default=64)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where stories are kept; default: SHOTSTREAM_DATA")
    parser.add_argument(
        "--durable",
        choices=("process", "power"),
        default="process",
        help="what stories survive: the end of the process at any moment, or also that of the machine (slower)",
    )
    parser.add_argument("--story-quota", type=float, default=16.0, metavar="GIB", help="for one story (default 16)")
    parser.add_argument("--quota", type=float, default=256.0, metavar="GIB", help="for all stories (default 256)")
    _add_preset_options(parser, "storyworld (default), wan-1.3b, or fake: numbered pictures instead of a model")
    parser.add_argument("--fake-chunk-ms", type=float, metavar="MS", help="fake: how long a chunk takes (default 250)")


def _add_weights(verbs: argparse._SubParsersAction[_Parser]) -> None:
    parser = verbs.add_parser("weights", help="list the files a preset uses", description=_weights.__doc__)
    parser.set_defaults(verb=_weights)
    parser.add_argument("--preset", default="storyworld")
    parser.add_argument("--weights", type=Path, help="a folder or file, as for generate")
    parser.add_argument("--json", action="store_true", help="one JSON object per file, for programs")


def _add_dispatch(
    verbs: argparse._SubParsersAction[_Parser],
    name: str,
    verb: Callable[[argparse.Namespace, list[str]], None],
    text: str,
) -> None:
    parser = verbs.add_parser(name, help=text, add_help=False)
    parser.set_defaults(verb=verb, passes_arguments=True)


def _add_preset_options(parser: argparse.ArgumentParser, presets: str = "storyworld (default) or wan-1.3b") -> None:
    parser.add_argument("--preset", default="storyworld", help=presets)
    parser.add_argument("--weights", type=Path, help="a folder with the preset's files, or a file for the model alone")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument(
        "--threads",
        type=int,
        help="on the CPU; default: one a core (serve: half of the logical CPUs), without bfloat16 one a logical CPU; "
        "at most 4",
    )


def _generate(options: argparse.Namespace, _: list[str]) -> None:
    """Film a story: from a file, or from --shot and --steer. The mp4 grows, and can be played, while it is made."""
    stories = _stories(options)
    outputs = _outputs(options.output, len(stories))
    sheets = _outputs(options.sheet, len(stories)) if options.sheet else [None] * len(stories)
    _check_paths(outputs, sheets)
    engine = _load_engine(options)
    from shotstream.generate import check_stories, describe, generate

    check_stories(engine, stories)
    for story, output, sheet in zip(stories, outputs, sheets, strict=True):
        report = generate(engine, story, output, seed=story.seed or 0, sheet=sheet, console=console)
        console.print(describe(report, engine.preset.fps), highlight=False, soft_wrap=True)
        print(output)


def _bench(options: argparse.Namespace, _: list[str]) -> None:
    """Measure speed, latency and memory. A table for people; the last line is one JSON object for programs."""
    if not (options.seconds > 0 and math.isfinite(options.seconds)):
        raise ValueError(f"--seconds must be a positive number, got {options.seconds:g}")
    from shotstream import bench

    load = os.getloadavg()[0]
    engine = _load_engine(options)
    if warning := bench.busy_warning(load):
        console.print(f"[yellow]warning:[/] {warning}", highlight=False, soft_wrap=True)
    result = bench.measure(engine, seconds=options.seconds, load_average=load, seed=options.seed)
    Console().print(bench.table(result))
    print(result.to_json())


def _serve(options: argparse.Namespace, _: list[str]) -> None:
    """Serve the page and the socket. The address goes to stdout once the server answers."""
    _need("fastapi", "serving", "serve")
    _need("uvicorn", "serving", "serve")
    from shotstream.server.serve import serve

    if options.fake_chunk_ms is None:
        serve(options, lambda: _load_engine(options, live=True))
        return
    engine = _fake_engine(options)
    serve(options, lambda: engine)


def _weights(options: argparse.Namespace, _: list[str]) -> None:
    """List the files that a preset uses: where they were found, their size, SHA-256 and metadata."""
    from shotstream.inventory import list_weights
    from shotstream.presets import get_preset

    for entry in list_weights(get_preset(options.preset), options.weights):
        print(json.dumps(asdict(entry)) if options.json else entry.summary)


def _world(_: argparse.Namespace, rest: list[str]) -> None:
    _need("skia", "the drawn world", "world")
    importlib.import_module("shotstream.storyworld.showcase").main(rest)


def _train(_: argparse.Namespace, rest: list[str]) -> None:
    import shotstream.recipes

    modules = {module.name for module in pkgutil.iter_modules(shotstream.recipes.__path__)}
    known = sorted(modules - {"runs", "watching"})  # what recipes share
    if not rest or rest[0] not in known:
        given = f", got {rest[0]!r}" if rest else ""
        raise ValueError(f"`shotstream train` needs a recipe{given}: one of {', '.join(known)}")
    importlib.import_module(f"shotstream.recipes.{rest[0]}").main(rest[1:])


def _evaluate(_: argparse.Namespace, rest: list[str]) -> None:
    _need("skia", "evaluation", "eval")
    importlib.import_module("shotstream.evaluation.suite").main(rest)


def _need(module: str, what: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{what} needs {module}: install the extra with `pip install 'shotstream[{extra}]'`")


def _fake_engine(options: argparse.Namespace) -> Engine:
    from shotstream.engine.fake import FAKE, FakeConfig, FakeEngine

    if options.preset != FAKE.name:
        raise ValueError(f"--fake-chunk-ms is for --preset {FAKE.name}: what a model needs cannot be set")
    return FakeEngine(FakeConfig(chunk_ms=options.fake_chunk_ms))


def _load_engine(options: argparse.Namespace, *, live: bool = False) -> Engine:
    if options.steps is not None and (options.model != "teacher" or options.steps < 1):
        raise ValueError("--steps is a positive number and for --model teacher: the student's steps belong to it")
    from shotstream.engine.fake import FAKE
    from shotstream.engine.loading import load, serving_threads

    if options.preset == FAKE.name and not live:
        raise ValueError(f"preset {FAKE.name} only draws numbered pictures for `shotstream serve`: choose another")
    return load(
        options.preset,
        model=options.model,
        weights=options.weights,
        device=options.device,
        num_steps=options.steps,
        threads=serving_threads() if live and options.threads is None else options.threads,
    )


def _stories(options: argparse.Namespace) -> list[Story]:
    if options.story is not None and options.shot:
        raise ValueError("give either a story file or --shot, not both")
    if options.story is None:
        stories = [Story(shots=tuple(Shot(caption=caption) for caption in options.shot), name="story")]
    elif options.story.suffix.lower() == ".csv":
        stories = read_reference_csv(options.story)
    else:
        stories = [read_story(options.story)]
    return [_changed(story, options) for story in stories]


def _changed(story: Story, options: argparse.Namespace) -> Story:
    """Apply --seed, --chunks, --global and --steer."""
    if options.seed is not None:
        story = replace(story, seed=options.seed)
    if options.chunks is not None:
        story = story.with_chunks(options.chunks)
    if options.global_caption is not None:
        story = replace(story, global_caption=options.global_caption)
    shots = list(story.shots)
    for text in options.steer:
        index, steer = _parse_steer(text)
        if index >= len(shots):
            raise ValueError(f"--steer {text!r} names shot {index}, the story has shots 0..{len(shots) - 1}")
        shots[index] = replace(shots[index], steers=(*shots[index].steers, steer))
    return replace(story, shots=tuple(shots))


def _parse_steer(text: str) -> tuple[int, Steer]:
    shot, _, rest = text.partition(":")
    chunk, _, caption = rest.partition(":")
    if not (shot.strip().isdecimal() and chunk.strip().isdecimal()):
        raise ValueError(f"--steer must be SHOT:CHUNK:TEXT, for example 0:3:'he looks surprised', got {text!r}")
    return int(shot), Steer(chunk=int(chunk), caption=caption.strip())


def _outputs(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{index:02d}") for index in range(1, count + 1)]


def _check_paths(outputs: Sequence[Path], sheets: Sequence[Path | None]) -> None:
    """Refuse a path that cannot be written before the model is loaded."""
    from shotstream.engine.video import check_writable

    for output in outputs:
        check_writable(output, suffixes=(".mp4",))
    for sheet in sheets:
        if sheet is not None:
            check_writable(sheet, suffixes=(".png",))


if __name__ == "__main__":
    sys.exit(main())
