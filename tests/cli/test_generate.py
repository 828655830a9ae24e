"""`shotstream generate` writes what the story says, and bad input costs nothing."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from shotstream import cli
from shotstream.engine import loading
from shotstream.engine.stream import Engine, TeacherEngine
from shotstream.generate import describe, film, generate, unknown_words
from shotstream.models.checkpoint import save_dit
from shotstream.models.text import MINILM_PACKAGE, MiniLMEncoder
from shotstream.models.tiny_codec import FORMAT, TinyCodec, TinyCodecConfig
from shotstream.models.vocabulary import VOCABULARY_FILE
from shotstream.presets import PACKAGE_WEIGHTS, STORYWORLD, find_local_weights
from shotstream.story import PICTURE, Making, Picture, Recall, Shot, Steer, Story, write_story

STORY = Story(
    global_caption="a fox",
    shots=(
        Shot(caption="he walks", steers=(Steer(chunk=1, caption="he stops"),), num_chunks=2),
        Shot(caption="he sleeps", num_chunks=1),
    ),
)


@pytest.fixture
def loaded(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The command loads the tiny engine whatever preset is asked for."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: tiny_engine)
    return tiny_engine


def _num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def _quiet() -> Console:
    return Console(file=io.StringIO())


def test_filming_applies_cuts_and_steers_where_the_story_says(tiny_engine: Engine) -> None:
    chunks = list(film(tiny_engine.stream(seed=1, global_caption="a fox"), STORY))
    assert [(chunk.shot, chunk.index, len(chunk.frames)) for chunk in chunks] == [(0, 0, 9), (0, 1, 12), (1, 0, 9)]
    assert [[applied.kind for applied in chunk.applied] for chunk in chunks] == [["cut"], ["steer"], ["cut"]]
    assert chunks[1].caption == "a fox. he walks. he stops"


def test_generating_writes_every_frame_and_a_sheet(tiny_engine: Engine, tmp_path: Path) -> None:
    report = generate(tiny_engine, STORY, tmp_path / "a.mp4", sheet=tmp_path / "a.png", console=_quiet())
    assert report.num_frames == _num_frames(tmp_path / "a.mp4") == 30
    assert len(report.first_frame_seconds) == 2
    assert "30 frames" in describe(report, 16)
    assert Image.open(tmp_path / "a.png").height > 2 * 120


def test_a_long_caption_is_refused_before_anything_is_written(tiny_engine: Engine, tmp_path: Path) -> None:
    story = Story(shots=(Shot(caption="a fox"), Shot(caption="word " * 70)))
    with pytest.raises(ValueError, match=r"shot 1: the caption has 7\d tokens"):
        generate(tiny_engine, story, tmp_path / "a.mp4", console=_quiet())
    assert list(tmp_path.iterdir()) == []


def test_a_caption_that_is_too_long_until_another_takes_its_place_is_refused_before_anything_is_written(
    tiny_engine: Engine, tmp_path: Path
) -> None:
    steers = (Steer(chunk=1, caption="word " * 70), Steer(chunk=3, caption="a bear", replaces=True))
    (tmp_path / "a.mp4").write_bytes(b"precious")
    for shot in (Shot(caption="a fox", steers=steers), Shot(caption="word " * 70, steers=steers[1:])):
        story = Story(shots=(Shot(caption="a fox"), shot))
        with pytest.raises(ValueError, match=r"shot 1: the caption has 7\d tokens"):
            generate(tiny_engine, story, tmp_path / "a.mp4", console=_quiet())
    assert (tmp_path / "a.mp4").read_bytes() == b"precious"


def test_the_wait_for_a_shot_is_counted_from_the_last_frames_before_it(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shotstream.generate.time", SimpleNamespace(perf_counter=count().__next__))
    cut_short = Shot(caption="a fox", num_chunks=3, making=Making(id=1, number=0, frames=20))
    story = Story(shots=(cut_short, Shot(caption="a bear", num_chunks=1, making=Making(id=2, number=1))))
    report = generate(tiny_engine, story, tmp_path / "a.mp4", console=_quiet())
    assert report.num_frames == 20 + 9
    assert report.first_frame_seconds == (1, 1)
    assert report.seconds == 3


def test_the_command_films_a_story_file(loaded: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_story(STORY, tmp_path / "story.yaml")
    output = tmp_path / "out.mp4"
    assert cli.main(["generate", str(tmp_path / "story.yaml"), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert _num_frames(output) == 30


def test_the_command_films_shots_given_as_options(loaded: Engine, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    arguments = ["--shot", "a fox walks", "--shot", "a fox sleeps", "--steer", "0:1:he stops", "--chunks", "2"]
    assert cli.main(["generate", *arguments, "-o", str(output), "--sheet", str(tmp_path / "s.png")]) == 0
    assert _num_frames(output) == 42


def test_captions_with_brackets_are_filmed(loaded: Engine, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    shots = ["--shot", "a fox [/red] walks [bold]", "--shot", "[link=x]a fox sleeps [/]"]
    assert cli.main(["generate", *shots, "--chunks", "1", "-o", str(output)]) == 0
    assert _num_frames(output) == 18


@pytest.mark.parametrize(
    ("recall", "message"),
    [
        (Recall(id=1, frame=21), "recalls frame 21 of shot 1, which has 21: leave every shot as long as it was"),
        (Recall(id=PICTURE, frame=0), "is not a PNG file in base64"),
    ],
)
def test_a_story_that_recalls_what_is_not_there_is_refused_before_anything_is_written(
    loaded: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], recall: Recall, message: str
) -> None:
    shots = (
        Shot(caption="a fox", num_chunks=2, making=Making(id=1, number=0)),
        Shot(caption="a bear", num_chunks=1, making=Making(id=2, number=1, recalls=(recall,))),
    )
    write_story(Story(shots=shots, pictures=(Picture(caption="x", png="AA=="),)), tmp_path / "story.yaml")
    output = tmp_path / "out.mp4"
    output.write_bytes(b"an earlier film")
    assert cli.main(["generate", str(tmp_path / "story.yaml"), "-o", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert output.read_bytes() == b"an earlier film"


def test_the_teacher_is_loaded_with_its_own_number_of_steps(tiny_weights: Path) -> None:
    engine = loading.load("tiny", model="teacher", weights=tiny_weights, num_steps=3)
    assert isinstance(engine, TeacherEngine)
    assert engine.num_steps == 3
    engine = loading.load("tiny", model="teacher", weights=tiny_weights)
    assert engine.num_steps == engine.preset.teacher_steps


def test_the_command_films_with_the_teacher(tiny_weights: Path, tmp_path: Path) -> None:
    films = []
    for steps in ("1", "3"):
        films.append(tmp_path / f"{steps}.mp4")
        model = ["--preset", "tiny", "--weights", str(tiny_weights), "--model", "teacher", "--steps", steps]
        shot = ["--shot", "a fox", "--steer", "0:1:he stops", "--chunks", "2"]
        assert cli.main(["generate", *model, *shot, "-o", str(films[-1])]) == 0
        assert _num_frames(films[-1]) == 21
    assert films[0].read_bytes() != films[1].read_bytes()


def test_the_command_films_with_weights_in_shards(tiny_weights: Path, tiny_engine: Engine, tmp_path: Path) -> None:
    films = []
    for shard_bytes in (10**9, 8000):
        save_dit(tiny_weights / "student.safetensors", tiny_engine.model, dtype=torch.float32, shard_bytes=shard_bytes)
        films.append(tmp_path / f"{shard_bytes}.mp4")
        model = ["--preset", "tiny", "--weights", str(tiny_weights)]
        assert cli.main(["generate", *model, "--shot", "a fox", "--chunks", "1", "-o", str(films[-1])]) == 0
    assert not (tiny_weights / "student.safetensors").exists()
    assert films[0].read_bytes() == films[1].read_bytes()


def test_what_cannot_be_drawn_is_named_and_filmed_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_local_weights(STORYWORLD, "student") is None or find_local_weights(STORYWORLD, "codec") is None:
        pytest.skip("the storyworld weights are not in the package")
    output = tmp_path / "out.mp4"
    assert cli.main(["generate", "--shot", "a knight on a dragon", "--chunks", "1", "-o", str(output)]) == 0
    error = capsys.readouterr().err
    assert 'notice: cannot draw "dragon"; the nearest it can is' in error
    assert '"knight"' not in error
    assert _num_frames(output) == 9


def test_what_is_said_only_until_something_takes_its_place_is_checked_too() -> None:
    if not importlib.util.find_spec(MINILM_PACKAGE) or not (PACKAGE_WEIGHTS / "storyworld" / VOCABULARY_FILE).is_file():
        pytest.skip("the MiniLM weights package, or the vocabulary of storyworld, is not installed")
    shot = Shot(caption="a dragon", steers=(Steer(chunk=1, caption="a fox", replaces=True),))
    unknown = unknown_words(Story(shots=(shot,)), STORYWORLD, MiniLMEncoder())
    assert [one.word for one in unknown] == ["dragon"]


def test_a_table_of_stories_becomes_numbered_files(loaded: Engine, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text('{"global_caption": "A fox.", "shot1": "It runs."}')
    (tmp_path / "list.csv").write_text('json_path,frame_number\none.json,"[[0, 81]]"\ntwo.json,"[[0, 81]]"\n')
    assert cli.main(["generate", str(tmp_path / "list.csv"), "--chunks", "1", "-o", str(tmp_path / "o.mp4")]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["o-01.mp4", "o-02.mp4"]


def test_no_story_of_a_table_is_filmed_if_another_is_too_long(
    loaded: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, shot in (("one", "It runs."), ("two", "word " * 70)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"shot1": shot}))
    (tmp_path / "list.csv").write_text('json_path,frame_number\none.json,"[[0, 81]]"\ntwo.json,"[[0, 81]]"\n')
    assert cli.main(["generate", str(tmp_path / "list.csv"), "-o", str(tmp_path / "o.mp4")]) == 2
    error = capsys.readouterr().err
    assert "two: shot 0: the caption has 70 tokens" in error
    assert error.count("\n") == 1
    assert list(tmp_path.glob("*.mp4")) == []


def test_the_same_seed_gives_the_same_file(loaded: Engine, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cli.main(["generate", "--shot", "a fox", "--chunks", "1", "--seed", "5", "-o", str(tmp_path / f"{name}.mp4")])
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shot", " "], "a shot needs a caption"),
        ([], "at least one shot"),
        (["missing.yaml"], "error: missing.yaml: No such file"),
        (["--shot", "x", "--preset", "nope"], "unknown preset 'nope'"),
        (["--shot", "x", "--preset", "fake"], "preset fake only draws numbered pictures for `shotstream serve`"),
        (["--shot", "x", "--weights", "missing"], "no weights at missing"),
        (["--shot", "x", "--weights", "."], "holds no weights of preset storyworld"),
        (["--shot", "x", "--weights", "broken.safetensors"], "cannot read weights"),
        (["--shot", "x", "--steer", "1:0:y"], "names shot 1"),
        (["--shot", "x", "--steer", "soon"], "SHOT:CHUNK:TEXT"),
        (["--shot", "x", "--steer", "0:9:y"], "chunks 0..6"),
        (["--shot", "x", "--chunks", "0"], "at least 1"),
        (["--shot", "x", "--seed", "-1"], "seed"),
        (["--shot", "un \udcc3t\udca9"], "the caption of a shot is not valid text"),
        (["--shot", "x", "--global", "un \udcff"], "the caption of the whole story is not valid text"),
        (["--shot", "x", "--steps", "4"], "--steps"),
        (["--shot", "x", "--device", "tpu9"], "no device 'tpu9' here: use cpu"),
        (["--shot", "x", "--device", "meta"], "no device 'meta' here"),
        (["deep.json"], "deep.json: not readable as JSON: it is nested too deeply"),
        (["deep.yaml"], "deep.yaml: not readable as YAML: it is nested too deeply"),
        (["deep.csv"], "frame_number must be a list"),
        (["noise.csv"], "noise.csv: it is not text in UTF-8: pass a story's file"),
        (["noise.yaml"], "noise.yaml: it is not text in UTF-8"),
        (["of-noise.csv"], "of-noise.csv, row 1: noise.json: it is not text in UTF-8"),
        (["wide.csv"], "wide.csv: not readable as CSV: field larger than field limit"),
        (["--shot", "x", "--sheet", "sheet.jpg"], "must end in .png"),
        (["story.yaml", "--shot", "x"], "not both"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    for name in ("deep.json", "deep.yaml"):
        (tmp_path / name).write_text("[" * 100_000)
    (tmp_path / "deep.csv").write_text(f"json_path,frame_number\nx.json,{'-' * 100_000}1\n")
    for name in ("noise.csv", "noise.yaml", "noise.json"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    (tmp_path / "of-noise.csv").write_text('json_path,frame_number\nnoise.json,"[[0, 81]]"\n')
    (tmp_path / "wide.csv").write_text(f"json_path,frame_number\n{'x' * 200_000},1\n")
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "out.mp4").write_bytes(b"precious")
    assert cli.main(["generate", *arguments, "-o", "out.mp4"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "out.mp4").read_bytes() == b"precious"


def test_weights_of_another_shape_are_refused(
    tiny_engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_dit(tmp_path / "student.safetensors", tiny_engine.model)
    assert cli.main(["generate", "--shot", "x", "--weights", str(tmp_path), "-o", str(tmp_path / "a.mp4")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'student.safetensors'} is a student not of preset storyworld: dim is 32, expected 256" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["student.safetensors", "codec.safetensors"])
def test_a_codec_in_place_of_the_student_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    _small_codec().save(path)
    given = tmp_path if name == "student.safetensors" else path
    assert cli.main(["generate", "--shot", "x", "--weights", str(given), "-o", str(tmp_path / "a.mp4")]) == 2
    error = capsys.readouterr().err
    assert f"{path}: cannot read the model's config: it does not say dim, num_layers: is it that of a DiT?" in error
    assert "Pass the weights of a student or a teacher" in error
    assert error.count("\n") == 1


def _small_codec(**changes: int) -> TinyCodec:
    widths = {"encoder_widths": (16, 16, 16), "decoder_widths": (16, 16, 16)}
    return TinyCodec(TinyCodecConfig(**widths, **changes))


def _write_wrong_shapes(path: Path) -> None:
    codec = _small_codec()
    codec.encoder.first = torch.nn.Conv2d(48, 32, 3)
    codec.save(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"not weights"), "cannot read weights from"),
        (lambda path: save_file({"weight": torch.zeros(1)}, path), f"expected a file of format {FORMAT}, got None"),
        (lambda path: save_file({"weight": torch.zeros(1)}, path, {"format": FORMAT}), "does not say its config"),
        (lambda path: save_file({}, path, {"format": FORMAT, "config": "{"}), "cannot read weights from"),
        (lambda path: save_file({}, path, {"format": FORMAT, "config": '{"patch": "four"}'}), "cannot read weights"),
        (lambda path: save_file({}, path, {"format": FORMAT, "config": "{}"}), "tensors missing"),
        (_write_wrong_shapes, "encoder.first.weight is [32, 48, 3, 3], expected [16, 48, 3, 3]"),
        (lambda path: _small_codec().save(path), "32 channels at stride 16, preset storyworld needs 48 at 16"),
        (lambda path: _small_codec(latent_channels=48, patch=2).save(path), "48 channels at stride 8"),
    ],
)
def test_a_codec_that_does_not_fit_is_refused_before_anything_is_written(
    write: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "codec.safetensors")
    (tmp_path / "out.mp4").write_bytes(b"precious")
    assert cli.main(["generate", "--shot", "x", "--weights", str(tmp_path), "-o", str(tmp_path / "out.mp4")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "out.mp4").read_bytes() == b"precious"


def test_a_probe_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skia", reason="evaluation needs the renderer")
    for name in ("garbage.safetensors", "garbage"):
        (tmp_path / name).write_bytes(b"not a probe")
        assert cli.main(["evaluate", "--probe", str(tmp_path / name), "--stories", "1"]) == 2
        error = capsys.readouterr().err
        assert f"cannot read weights from {tmp_path / name}" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("output", ["none/out.mp4", "out.avi", "/proc/out.mp4"])
def test_an_unwritable_output_is_refused_before_loading(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("the model should not be loaded"))
    assert cli.main(["generate", "--shot", "x", "-o", output]) == 2
    error = capsys.readouterr().err
    assert f"cannot write {output}" in error
    assert error.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("full", ["out.mp4", "sheet.png"])
def test_a_full_disk_names_the_file_and_the_way_out(
    full: str, loaded: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(full).symlink_to("/dev/full")
    assert cli.main(["generate", "--shot", "x", "--chunks", "1", "-o", "out.mp4", "--sheet", "sheet.png"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"shotstream: error: {full}: No space left on device: make room there, or write elsewhere"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "shotstream: error: the following arguments are required: VERB"),
        (["film"], "invalid choice: 'film'"),
        (["generate", "--shot", "x"], "shotstream generate: error: the following arguments are required: -o/--output"),
        (["generate", "--shot", "x", "-o", "a.mp4", "--chunks", "two"], "argument --chunks: invalid int value: 'two'"),
        (["generate", "--shot", "x", "-o", "a.mp4", "--lenght=2"], "unrecognized arguments: --lenght=2"),
    ],
)
def test_wrong_arguments_are_one_line_too(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["nope", "runs"])
def test_an_unknown_recipe_lists_the_known_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", name]) == 2
    error = capsys.readouterr().err
    assert "causal_init, codec" in error
    assert "runs," not in error


def test_weights_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["weights"]) == 0
    assert capsys.readouterr().out.startswith("student")
    assert cli.main(["weights", "--weights", str(tmp_path / "none")]) == 2
