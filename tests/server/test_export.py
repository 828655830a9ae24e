"""What was directed can be taken along, in formats that other programs read."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tests.server.kept_story import KeptStory, film_a_tree  # type: ignore[import-not-found]

from shotstream.engine import messages as m
from shotstream.engine.memory import ShownFrames
from shotstream.engine.pictures import thumbnail
from shotstream.engine.retelling import retell
from shotstream.engine.stream import Engine
from shotstream.generate import generate
from shotstream.server.archive import StoryArchive
from shotstream.server.export import NothingMade, captions, cut_list, decode, export, story, timeline
from shotstream.server.media import ChunkEncoder
from shotstream.story import compose_caption, parse_story, read_story, story_yaml, write_story


@pytest.fixture(scope="module")
def kept(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptStory]:
    kept = KeptStory(tiny_engine, tmp_path_factory.mktemp("data"))
    noise = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    film_a_tree(kept, picture=thumbnail(noise))
    yield kept
    kept.close()


def _latents(archive: StoryArchive, node: int, num_chunks: int) -> list[bytes]:
    return [archive.latent(node, chunk).tobytes() for chunk in range(num_chunks)]


def _decoded(path: Path) -> tuple[list[float], list[np.ndarray]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [float(frame.time) for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


def test_without_a_cut_list_the_live_path_is_exported(kept: KeptStory) -> None:
    clips = cut_list(kept.archive)
    assert [(clip.node, clip.num_frames) for clip in clips] == [(1, 33), (3, 9), (5, 21)]
    assert sum(clip.num_frames for clip in clips) == kept.archive.info().num_frames


def test_a_cut_list_mixes_takes_in_any_order(kept: KeptStory) -> None:
    clips = cut_list(kept.archive, [4, 2, 4, 3])
    assert [(clip.node, clip.num_frames) for clip in clips] == [(4, 9), (2, 21), (4, 9), (3, 9)]
    with pytest.raises(ValueError, match="no take 9"):
        cut_list(kept.archive, [9])


def test_nothing_is_exported_of_a_story_that_has_not_begun(kept: KeptStory) -> None:
    with pytest.raises(NothingMade):
        cut_list(kept.archive, [])


def test_the_mp4_has_the_very_pictures_that_were_sent_in_even_time(kept: KeptStory, tmp_path: Path) -> None:
    clips = cut_list(kept.archive, [2, 1, 3])
    export(kept.archive, clips, "mp4", tmp_path / "film.mp4")
    times, pictures = _decoded(tmp_path / "film.mp4")
    info = kept.archive.info()
    sent = [decode(kept.archive, info, chunk)[:count] for clip in clips for chunk, count in clip.pieces]
    assert times == pytest.approx([index / 16 for index in range(len(times))])
    np.testing.assert_array_equal(np.stack(pictures), np.concatenate(sent))
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert float(container.duration / av.time_base) == pytest.approx(len(times) / 16, abs=0.01)
        assert container.streams.video[0].average_rate == 16


@pytest.mark.parametrize("nodes", [None, [4, 2, 1, 2], [5, 3]])
def test_the_story_file_makes_the_same_frames_again(
    kept: KeptStory, tiny_engine: Engine, tmp_path: Path, nodes: list[int] | None
) -> None:
    clips = cut_list(kept.archive, nodes)
    write_story(story(kept.archive, clips), tmp_path / "story.yaml")
    again = list(retell(tiny_engine, read_story(tmp_path / "story.yaml")))
    pieces = [piece for clip in clips for piece in clip.pieces]
    assert [len(chunk.frames) for chunk in again] == [count for _, count in pieces]
    assert [chunk.caption for chunk in again] == [chunk.caption for chunk, _ in pieces]
    for chunk, (stored, _) in zip(again, pieces, strict=True):
        np.testing.assert_array_equal(chunk.latent[0].numpy(), kept.archive.latent(stored.node, stored.chunk))


def test_generate_films_an_exported_story_as_the_cut_list_shows_it(
    kept: KeptStory, tiny_engine: Engine, tmp_path: Path
) -> None:
    again = story(kept.archive, cut_list(kept.archive, [4, 2, 3]))
    quiet = Console(file=io.StringIO())
    report = generate(
        tiny_engine, again, tmp_path / "a.mp4", seed=again.seed or 0, sheet=tmp_path / "a.png", console=quiet
    )
    assert report.num_frames == len(_decoded(tmp_path / "a.mp4")[0]) == 9 + 21 + 9
    assert len(report.first_frame_seconds) == 3
    assert Image.open(tmp_path / "a.png").height > 300


def test_every_shot_is_as_long_as_it_was_on_air_though_the_next_one_remembers_less(
    tiny_engine: Engine, tmp_path: Path
) -> None:
    kept = KeptStory(tiny_engine, tmp_path / "data")
    for shot, text in enumerate(("a fox", "a boat", "a bear", "a house")):
        kept.direct(m.Cut if shot else m.Start, text=text, num_chunks=40)
        kept.wait(lambda event, shot=shot: isinstance(event, m.ChunkReady) and (event.shot, event.chunk) == (shot, 2))
    kept.direct(m.Cut, text="the city", num_chunks=1)
    kept.hold()
    clips = cut_list(kept.archive)
    starts = [clip.chunks[0].start for clip in clips]
    assert [clip.num_frames for clip in clips] == [*np.diff(starts), 9]
    remembered = [clip.take.take.parent_frames for clip in clips[1:]]
    assert any(shown.num_frames > frames for shown, frames in zip(clips, remembered, strict=False))
    kept.direct(m.Retake, node=3)
    kept.hold()
    assert [clip.num_frames for clip in cut_list(kept.archive)[:1]] == [clips[0].num_frames]
    assert cut_list(kept.archive)[1].num_frames == remembered[1], "nobody saw this one go on"
    kept.close()


def test_a_cut_inside_a_shot_and_an_undone_steer_are_told_again_to_the_frame(
    tiny_engine: Engine, tmp_path: Path
) -> None:
    kept = KeptStory(tiny_engine, tmp_path / "data")
    for shot, text in enumerate(("a fox", "a boat", "a bear", "a house")):
        kept.direct(m.Cut if shot else m.Start, text=text, num_chunks=40)
        kept.wait(lambda event, shot=shot: isinstance(event, m.ChunkReady) and (event.shot, event.chunk) == (shot, 2))
    kept.direct(m.Cut, text="the city", num_chunks=2)
    kept.direct(m.Steer, text="it rains", at=m.At(shot=4, chunk=1))
    kept.hold()
    kept.direct(m.Undo)
    kept.direct(m.Extend, num_chunks=2)
    kept.hold()
    clips = cut_list(kept.archive)
    stored = [piece for clip in clips for piece in clip.pieces]
    assert any(clip.num_frames < sum(chunk.num_frames for chunk in clip.chunks) for clip in clips), "no cut inside"
    assert "it rains" not in " ".join(chunk.caption for chunk, _ in stored)
    export(kept.archive, clips, "mp4", tmp_path / "film.mp4")
    again = list(retell(tiny_engine, story(kept.archive, clips)))
    assert len(_decoded(tmp_path / "film.mp4")[0]) == sum(len(chunk.frames) for chunk in again)
    assert [len(chunk.frames) for chunk in again] == [count for _, count in stored]
    for chunk, (one, _) in zip(again, stored, strict=True):
        np.testing.assert_array_equal(chunk.latent[0].numpy(), kept.archive.latent(one.node, one.chunk))
    kept.close()


def test_what_is_remembered_of_a_very_long_shot_is_told_again_to_the_frame(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShownFrames.__init__, "__defaults__", (16,))  # of a longer one few frames are kept
    kept = KeptStory(tiny_engine, tmp_path / "data")
    for shot in range(4):
        kept.direct(m.Cut if shot else m.Start, text=f"place {shot}", num_chunks=40)
        kept.wait(lambda event, shot=shot: isinstance(event, m.ChunkReady) and (event.shot, event.chunk) == (shot, 6))
    clips = cut_list(kept.archive)
    last = {clip.node + 1: clip.num_frames - 1 for clip in clips}
    recalled = {node: kept.archive.remembered(node)[-1].id[1] for node in (2, 3, 4)}
    assert any(recalled[node] < last[node] for node in recalled), "the last frames are there: nothing is tested"
    again = list(retell(tiny_engine, story(kept.archive, clips)))
    for chunk, (one, _) in zip(again, [piece for clip in clips for piece in clip.pieces], strict=True):
        np.testing.assert_array_equal(chunk.latent[0].numpy(), kept.archive.latent(one.node, one.chunk))
    kept.close()


def _direct_at_random(kept: KeptStory, dice: random.Random, actions: int) -> None:
    """Everything that leads to other frames, in any order, some of it in the middle of a shot."""
    kept.done(kept.direct(m.Start, text="a fox", seed=3, num_chunks=3, global_caption="in the snow"))
    for number in range(actions):
        take = dice.choice(kept.archive.takes()).take
        match dice.choice(["cut", "cut", "steer", "pin", "remove", "add", "branch", "go on", "retake", "undo"]):
            case "cut":
                id = kept.direct(m.Cut, text=f"place {number}", num_chunks=dice.randint(1, 3))
            case "steer":
                id = kept.direct(m.Steer, replaces=dice.random() < 0.4, text=f"word {number}")
            case "pin" | "remove" as action if known := _remembered(kept):
                frame = dice.choice(known)
                id = kept.direct(m.Memory, action=action, frame=m.FrameRef(shot=frame.shot, frame=frame.frame))
            case "branch":
                text, chunk = f"way {number}", dice.randint(0, take.made_chunks)
                id = kept.direct(m.Branch, node=take.node, chunk=chunk, text=text, num_chunks=dice.randint(1, 3))
            case "go on":
                kept.done(kept.direct(m.Branch, node=take.node, chunk=dice.randint(1, take.made_chunks)))
                id = kept.direct(m.Extend, num_chunks=1)
            case "retake":
                id = kept.direct(m.Retake, node=take.node)
            case "undo":
                kept.done(kept.direct(m.Undo))
                id = kept.direct(m.Extend, num_chunks=1)
            case _:
                picture = np.random.default_rng(number).integers(0, 255, (32, 64, 3), np.uint8)
                id = kept.direct(m.Memory, action="add", picture=thumbnail(picture), caption=f"thing {number}")
        if dice.random() < 0.7:
            kept.done(id)
    kept.done(id)


def _remembered(kept: KeptStory) -> list[m.RememberedFrame]:
    return [frame for frame in kept.worker.look()[1].memory if frame.shot >= 0]


@pytest.mark.parametrize("seed", [1, 2])
def test_any_cut_list_of_any_story_is_told_again_to_the_bit(tiny_engine: Engine, tmp_path: Path, seed: int) -> None:
    dice, kept = random.Random(seed), KeptStory(tiny_engine, tmp_path / "data")
    _direct_at_random(kept, dice, actions=30)
    kept.close()
    kept = KeptStory(tiny_engine, tmp_path / "data")
    nodes = [stored.take.node for stored in kept.archive.takes()]
    encoder = ChunkEncoder(tiny_engine.preset.width, tiny_engine.preset.height)
    for chosen in (None, nodes, dice.choices(nodes, k=5)):
        clips = cut_list(kept.archive, chosen)
        pieces = [piece for clip in clips for piece in clip.pieces]
        again = list(retell(tiny_engine, parse_story(story_yaml(story(kept.archive, clips)))))
        assert [len(chunk.frames) for chunk in again] == [count for _, count in pieces]
        for chunk, (one, count) in zip(again, pieces, strict=True):
            assert chunk.caption == one.caption
            assert np.array_equal(chunk.latent[0].numpy(), kept.archive.latent(one.node, one.chunk)), (
                one.node,
                one.chunk,
            )
            if count == one.num_frames:
                assert encoder.encode(chunk.frames) == kept.archive.media(one.node, one.chunk)
    kept.close()


def test_captions_that_were_shortened_are_written_as_they_were_read(tiny_engine: Engine, tmp_path: Path) -> None:
    kept = KeptStory(tiny_engine, tmp_path / "data")
    kept.direct(m.Start, text="a fox " * 40, seed=1, num_chunks=1, global_caption="in the snow")
    kept.hold()
    kept.direct(m.Cut, text="a fox", num_chunks=3)
    kept.direct(m.Steer, text="he waves " * 15, at=m.At(shot=1, chunk=1))
    kept.direct(m.Steer, text="he sings " * 20, at=m.At(shot=1, chunk=2))
    kept.hold()
    clips = cut_list(kept.archive)
    again = list(retell(tiny_engine, story(kept.archive, clips)))
    stored = [chunk for clip in clips for chunk in clip.chunks]
    whole = compose_caption("in the snow", stored[-1].shot_caption, stored[-1].steers)
    assert stored[-1].caption != whole, "nothing was left out: the test does not test"
    assert [chunk.caption for chunk in again] == [chunk.caption for chunk in stored]
    assert [chunk.latent[0].numpy().tobytes() for chunk in again] == [
        data for clip in clips for data in _latents(kept.archive, clip.node, len(clip.chunks))
    ]
    kept.close()


def test_the_sheet_has_a_row_per_clip(kept: KeptStory, tmp_path: Path) -> None:
    heights = []
    for nodes in ([2], [2, 3, 4]):
        export(kept.archive, cut_list(kept.archive, nodes), "png", tmp_path / "sheet.png")
        heights.append(Image.open(tmp_path / "sheet.png").height)
    assert heights[1] > 2.5 * heights[0]


def test_webvtt_has_a_cue_for_every_caption_in_force(kept: KeptStory) -> None:
    text = captions(kept.archive, cut_list(kept.archive))
    header, *cues = text.strip().split("\n\n")
    assert header == "WEBVTT"
    assert len({cue.split("\n")[0] for cue in cues}) == len(cues), "a cue's name is its own"
    assert [cue.split("\n")[1:] for cue in cues] == [
        ["00:00:00.000 --> 00:00:00.562", "in the snow. a fox"],
        ["00:00:00.562 --> 00:00:01.312", "in the snow. a fox. he waves"],
        ["00:00:01.312 --> 00:00:02.062", "in the snow. a fox sleeps"],
        ["00:00:02.062 --> 00:00:02.625", "in the snow. the city"],
        ["00:00:02.625 --> 00:00:03.938", "in the snow. a bear"],
    ]


def test_opentimelineio_reads_the_cuts(kept: KeptStory) -> None:
    opentimelineio = pytest.importorskip("opentimelineio", reason="reading timelines needs opentimelineio")
    clips = cut_list(kept.archive, [1, 3, 4])
    read = opentimelineio.adapters.read_from_string(timeline(kept.archive, clips), "otio_json")
    found = list(read.find_clips())
    starts = [clip.range_in_parent().start_time.to_frames() for clip in found]
    assert starts == [0, 33, 42]
    assert [clip.duration().to_frames() for clip in found] == [33, 9, 9]
    assert read.duration().to_seconds() == pytest.approx(51 / 16)
    assert [clip.available_range().duration.to_frames() for clip in found] == [33, 21, 9]
    assert [clip.media_reference.target_url for clip in found] == ["take-1.mp4", "take-3.mp4", "take-4.mp4"]
    assert [int(marker.marked_range.start_time.value) for marker in found[0].markers] == [9, 21]


def test_the_bundle_has_the_film_and_every_file_that_its_timeline_names(kept: KeptStory, tmp_path: Path) -> None:
    export(kept.archive, cut_list(kept.archive), "zip", tmp_path / "film.zip")
    with zipfile.ZipFile(tmp_path / "film.zip") as bundle:
        names = set(bundle.namelist())
        film = io.BytesIO(bundle.read("main.mp4"))
    takes = {"take-1.mp4", "take-3.mp4", "take-5.mp4"}
    assert names == {"main.mp4", "main.png", "main.yaml", "main.otio", "main.vtt", *takes}
    with av.open(film) as container:
        assert sum(1 for _ in container.decode(video=0)) == 63
    assert [file.name for file in tmp_path.iterdir()] == ["film.zip"]
