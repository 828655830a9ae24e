"""The probe and what it learns from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("skia", reason="the drawn world needs skia-python: pip install 'shotstream[world]'")

from shotstream.models.checkpoint import read_tensors
from shotstream.recipes.probe import started_from
from shotstream.storyworld import ATTRIBUTES, held_out_pairs, sample_story
from shotstream.storyworld.probe import (
    ALONE,
    LOOKS,
    Probe,
    ProbeConfig,
    ProbeScores,
    frames_looked_at,
    load_probe,
    save_probe,
)
from shotstream.training.probe import (
    UNSEEN,
    ProbeDataConfig,
    ProbeStage,
    accuracy_by_framing,
    attention_missed,
    cells_of,
    classes_of,
    example,
    heldout_examples,
    random_spec,
)

SMALL = ProbeConfig(widths=(8, 16, 16), blocks=(1, 1))
LOOKING_TWICE = replace(SMALL, face_pixels=32, body_pixels=24, place_pixels=48)
SCORES = ProbeScores(accuracy={"mark": {"wide": 0.99, "medium": 0.5}}, still_accuracy={"mark": {"wide": 0.9}})


def test_it_looks_at_the_end_of_a_chunk_where_changes_are_complete():
    assert frames_looked_at(12) == (2, 5, 8, 11)
    assert frames_looked_at(9) == (2, 4, 6, 8)
    assert frames_looked_at(1) == (0, 0, 0, 0)


def test_every_chunk_gets_a_value_of_every_attribute():
    frames = torch.randint(0, 255, (2, 12, 192, 320, 3), dtype=torch.uint8)
    for reading in Probe(SMALL).read(frames):
        assert reading.keys() == ATTRIBUTES.keys()
        assert all(value in ATTRIBUTES[name] for name, value in reading.items())


def test_bytes_and_floats_are_the_same_picture():
    probe = Probe(SMALL)
    frames = torch.randint(0, 255, (1, 4, 192, 320, 3), dtype=torch.uint8)
    torch.testing.assert_close(probe.features(frames), probe.features(frames / 255), rtol=1e-4, atol=1e-5)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="320"):
        Probe(SMALL).read(torch.zeros(1, 12, 96, 160, 3, dtype=torch.uint8))


@pytest.mark.parametrize("config", [SMALL, LOOKING_TWICE], ids=["once", "twice"])
def test_a_saved_probe_reads_the_same(config: ProbeConfig, tmp_path: Path):
    probe = Probe(config)
    with torch.no_grad():
        for name, value in probe.named_parameters():
            if name.startswith("looks.") and ".heads." in name:
                value.normal_()
    rounded_to_bfloat16(probe)
    save_probe(probe, tmp_path / "probe.safetensors", SCORES)
    again, scores = load_probe(tmp_path / "probe.safetensors")
    frames = torch.randint(0, 255, (1, 4, 192, 320, 3), dtype=torch.uint8)
    torch.testing.assert_close(again.features(frames), probe.features(frames))
    torch.testing.assert_close(again(frames), probe(frames))
    assert scores == SCORES


def rounded_to_bfloat16(probe: Probe) -> Probe:
    probe.load_state_dict({name: value.bfloat16().float() for name, value in probe.state_dict().items()})
    return probe


@pytest.mark.parametrize("look", LOOKS)
def test_a_probe_that_is_to_look_again_reads_as_before(look: str, tmp_path: Path):
    plain = rounded_to_bfloat16(Probe(replace(SMALL, face_pixels=32)))
    save_probe(plain, tmp_path / "probe.safetensors", SCORES)
    probe = started_from(tmp_path / "probe.safetensors", [look])
    assert set(probe.looks) == {"face", look}
    frames = torch.randint(0, 255, (2, 4, 192, 320, 3), dtype=torch.uint8)
    before, after = plain(frames), probe(frames)
    for name in before.keys() - (set(ALONE) if look == "body" else set()):
        torch.testing.assert_close(after[name], before[name])


def test_second_looks_are_at_the_face_at_the_body_below_it_and_at_everything():
    """A picture of one bright square at the face and one below it: how much of each look they fill."""
    probe = Probe(LOOKING_TWICE)
    frames = torch.zeros(1, 4, 192, 320, 3)
    frames[:, :, 64:96, 192:224] = 1.0
    frames[:, :, 120:152, 192:224] = 1.0
    scores = torch.full((1, 12, 20), -30.0)
    scores[:, 4:6, 12:14] = 0.0
    centre, side = probe._face(torch.tensor([[30.0, 0.0, 0.0]]), scores.flatten(1))
    torch.testing.assert_close(centre, torch.tensor([[208.0, 80.0]]))
    assert side == pytest.approx(64, abs=0.1)
    picture = probe._picture(frames)
    shares = {}
    for look in LOOKS:
        bright = (probe._seen_by(look, picture, centre, side)[0, 0] > 0).float()
        shares[look] = bright.mean().item()
        if look == "face":
            torch.testing.assert_close(bright, bright.flip(0, 1))
    assert shares["face"] == pytest.approx(32**2 / 64**2, abs=0.03)
    assert shares["body"] == pytest.approx(2 * 32**2 / (2.1 * 64) ** 2, abs=0.03)
    assert shares["place"] == pytest.approx(2 * 32**2 / (192 * 320), abs=0.01)


def test_arrangements_are_read_by_place():
    """The same picture of a place of its own answers by that place's logits."""
    probe = Probe(LOOKING_TWICE)
    look = probe.looks["place"]
    with torch.no_grad():
        look.heads[LOOKS["place"].index("layout")].bias.copy_(torch.arange(32.0))
    picture = torch.zeros(2, 12, *LOOKING_TWICE.size("place"))
    place_NP = torch.eye(8)[[0, 3]]
    found = look(picture, place_NP)["layout"]
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 2.0, 3.0], [12.0, 13.0, 14.0, 15.0]]))


def test_a_second_look_needs_what_it_looks_by():
    with pytest.raises(ValueError, match="framing"):
        replace(LOOKING_TWICE, attributes=("character", "expression", "angle"))


def test_a_missing_probe_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(ValueError, match="train probe"):
        load_probe(tmp_path / "none.safetensors")


@pytest.mark.parametrize("broken", ["format", "config", "scores", "tensors"])
def test_a_broken_probe_is_named(broken: str, tmp_path: Path):
    path = tmp_path / "probe.safetensors"
    save_probe(Probe(SMALL), path, SCORES)
    tensors, metadata = read_tensors(path)
    if broken == "tensors":
        del tensors["queries"]
    else:
        metadata[broken] = '{"x": 1}'
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"probe\.safetensors"):
        load_probe(path)


def test_an_attribute_counts_only_where_it_is_read_well():
    assert SCORES.scored("mark", "wide")
    assert not SCORES.scored("mark", "medium")
    assert not SCORES.scored("mark", "close-up")
    assert not SCORES.scored("mark", "wide", still=True)
    assert not SCORES.scored("place", "wide")


def test_its_shots_include_the_pairs_that_stories_hold_back():
    rng = np.random.default_rng(0)
    specs = [random_spec(rng, ProbeDataConfig()) for _ in range(600)]
    pairs = {(s.character, name, getattr(s, name)) for s in specs for name in ("place", "action", "mark")}
    assert len(pairs & held_out_pairs()) > len(held_out_pairs()) / 2
    assert any(s.second_character != "none" for s in specs)


def test_classes_are_the_labels_where_the_frames_show_them():
    story = sample_story(5, num_shots=12)
    for spec in story.shots:
        classes = classes_of(spec, 3, still=False)
        labels = spec.labels(3)
        seen = {name: c for name, c in classes.items() if c != UNSEEN}
        assert all(ATTRIBUTES[name][c] == labels[name] for name, c in seen.items())
        assert ("layout" in seen) == (spec.framing != "close-up")
        assert classes_of(spec, 3, still=True)["camera_motion"] == UNSEEN


def test_a_batch_depends_on_its_address_alone():
    config = replace(ProbeDataConfig(), period=2, repeats=2)
    one, two = ProbeStage(Probe(SMALL), config, seed=1), ProbeStage(Probe(SMALL), config, seed=1)
    one.batch(0, range(2))
    first, second = one.batch(5, range(2)), two.batch(5, range(2))
    assert torch.equal(first.frames, second.frames)
    assert all(torch.equal(first.classes[name], second.classes[name]) for name in ATTRIBUTES)
    again = two.batch(7, range(2))  # the same chunks as at step 5, spoilt anew
    assert torch.equal(again.classes["place"], first.classes["place"])
    assert not torch.equal(again.frames, first.frames)


def test_cells_are_where_faces_and_marks_are_drawn():
    drawn = example(
        replace(random_spec(np.random.default_rng(0), ProbeDataConfig()), framing="medium"), 2, None, still=False
    )
    assert {"character", "expression", "mark", "clothing"} <= drawn.boxes.keys()
    x0, y0, x1, y1 = drawn.boxes["expression"][-1]
    cells = cells_of([drawn.boxes["expression"], ()], margin=0).view(2, 12, 20)
    assert cells[0, int((y0 + y1) / 2) // 16, int((x0 + x1) / 2) // 16]
    assert 0 < cells[0].sum() < 60
    assert not cells[1].any()


def test_looking_elsewhere_costs_and_looking_there_does_not():
    cells = torch.zeros(1, 240, dtype=torch.bool)
    cells[0, 17] = True
    there = torch.full((1, 240), -50.0).masked_fill(cells, 50.0)
    assert attention_missed(there, cells) < 1e-6
    assert attention_missed(torch.zeros(1, 240), cells) == pytest.approx(np.log(240))


def test_a_few_steps_learn_something():
    torch.manual_seed(0)
    probe = Probe(SMALL)
    stage = ProbeStage(probe, ProbeDataConfig(largest_noise=0, largest_blur=1), seed=0)
    batch = stage.batch(0, range(8))
    optimiser = torch.optim.AdamW(probe.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = next(iter(stage.losses(batch, 0))).value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_accuracy_is_counted_by_framing_and_only_where_seen():
    probe = Probe(SMALL)
    examples = heldout_examples(6, None, still=True)
    table = accuracy_by_framing(probe, examples)
    assert "camera_motion" not in table
    assert set(table["place"]) == {"all", *(example.framing for example in examples)}
    assert all(0 <= value <= 1 for row in table.values() for value in row.values())
