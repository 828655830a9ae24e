"""What is asked of a filmed story, once its chunks have been read: every answer goes into a tally under a name.

Readings are per shot and chunk, attribute -> value. An attribute is asked for only where the frames show it and the
reader can be trusted. Shots are numbered from 1 in answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shotstream.evaluation.metrics import Tally
from shotstream.evaluation.readers import Reader, Reading
from shotstream.evaluation.text_path import said_attributes
from shotstream.storyworld import ShotSpec, WorldStory, held_out_pairs, visible
from shotstream.storyworld.spec import NOBODY

STEER_CHUNKS = 2
"""A steer has this many chunks to show."""
MARK_ATTRIBUTES = ("mark", "second_mark")
Readings = Sequence[Sequence[Reading]]
Owner = tuple[str, str]
"""(mark, layout or tint; whose)."""


def following(reader: Reader, story: WorldStory, number: int, readings: Readings) -> Tally:
    """Do the frames show what the captions say?

    Names: said (all attributes), said/ATTRIBUTE (expressions in wide shots apart: wide/expression), left_out/ATTRIBUTE
    (a default nobody mentioned), pronoun (who "he" is), two_people/ATTRIBUTE, unseen_pair/ATTRIBUTE (character with a
    place or action that training never showed).
    """
    tally = Tally()
    for index, spec in enumerate(story.shots):
        for chunk, reading in enumerate(readings[index]):
            said = said_attributes(story, index, chunk)
            labels = spec.labels(chunk)
            for name in sorted(spec.known | said):
                if counts(reader, spec, chunk, name):
                    _ask(tally, story, number, index, name, labels[name], reading[name], said=name in said)
    return tally


def _ask(
    tally: Tally, story: WorldStory, number: int, index: int, name: str, wanted: str, read: str, *, said: bool
) -> None:
    spec, shot = story.shots[index], index + 1
    if name == "expression" and spec.framing == "wide":
        tally.add("wide/expression", number, wanted, read, shot=shot)
    elif said:
        tally.add("said", number, f"{name} {wanted}", f"{name} {read}", shot=shot)
        tally.add(f"said/{name}", number, wanted, read, shot=shot)
        if spec.second_character != NOBODY:
            tally.add(f"two_people/{name}", number, wanted, read, shot=shot)
        if (spec.character, name, wanted) in held_out_pairs():
            tally.add(f"unseen_pair/{name}", number, wanted, read, shot=shot)
    elif name == "character":
        tally.add("pronoun", number, wanted, read, shot=shot)
    elif not spec.recall_sources(name):
        tally.add(f"left_out/{name}", number, wanted, read, shot=shot)


def memory(reader: Reader, story: WorldStory, number: int, readings: Readings, *, prefix: str = "") -> Tally:
    """Do later shots show what only shot 1 showed: marks of its people, layout and tint of its place?

    Names, each after the prefix: hidden_mark, layout, tint; and each of them with /inside_rule where one of the last
    six shots showed it, so that the published memory rule keeps a frame of it, else with /outside_rule.
    """
    tally = Tally()
    for index in range(1, len(story.shots)):
        spec = story.shots[index]
        for chunk, reading in enumerate(readings[index]):
            for name, wanted in _seen_in_first_shot(story, index).items():
                if counts(reader, spec, chunk, name):
                    kind = "hidden_mark" if name in MARK_ATTRIBUTES else name
                    place = "inside_rule" if spec.recall_sources(name) else "outside_rule"
                    for title in (kind, f"{kind}/{place}"):
                        tally.add(f"{prefix}{title}", number, wanted, reading[name], shot=index + 1)
    return tally


def _seen_in_first_shot(story: WorldStory, index: int) -> dict[str, str]:
    """Hidden attributes of a later shot that shot 1 showed, with their values."""
    first, spec = story.shots[0], story.shots[index]
    labels, seen = spec.labels(), {}
    met = {first.character, first.second_character} - {NOBODY}
    for name, person in (("mark", spec.character), ("second_mark", spec.second_character)):
        if person in met:
            seen[name] = labels[name]
    if spec.place == first.place:
        seen["tint"] = labels["tint"]
        if first.framing != "close-up":
            seen["layout"] = labels["layout"]
    return seen


def own_memory(reader: Reader, story: WorldStory, number: int, readings: Readings) -> Tally:
    """Does a story of the model's own stay true to itself? Names: own_hidden_mark, own_layout, own_tint, first_mark.

    The first reading of a person's mark, or of a place, is what later shots are held to.
    """
    tally = Tally()
    before: dict[Owner, str] = {}
    for index, spec in enumerate(story.shots):
        now: dict[Owner, str] = {}
        for (name, owner), read in _hidden(reader, spec, readings[index]):
            if owner in before:
                tally.add(f"own_{_title(owner)}", number, before[owner], read, shot=index + 1)
            elif owner not in now:
                now[owner] = read
                if name == "mark":
                    tally.add("first_mark", number, spec.mark, read, shot=index + 1)
        before |= now
    return tally


def unrelated(reader: Reader, story: WorldStory, number: int, readings: Readings, other: Sequence[Reading]) -> Tally:
    """Do later shots agree with shot 1 of *another* story with the same captions? What the captions alone bring about.

    Names: unrelated_hidden_mark, unrelated_layout, unrelated_tint. other: readings of the other story's first shot.
    """
    tally = Tally()
    seen: dict[Owner, str] = {}
    for (_, owner), read in _hidden(reader, story.shots[0], other):
        seen.setdefault(owner, read)
    for index, spec in enumerate(story.shots[1:], start=1):
        for (_, owner), read in _hidden(reader, spec, readings[index]):
            if owner in seen:
                tally.add(f"unrelated_{_title(owner)}", number, seen[owner], read, shot=index + 1)
    return tally


def _hidden(reader: Reader, spec: ShotSpec, shot: Sequence[Reading]) -> list[tuple[tuple[str, Owner], str]]:
    """((attribute, owner), value) of everything hidden that a shot shows, chunk by chunk."""
    owners = {"mark": spec.character, "second_mark": spec.second_character, "layout": spec.place, "tint": spec.place}
    return [
        ((name, ("mark" if name in MARK_ATTRIBUTES else name, owner)), reading[name])
        for chunk, reading in enumerate(shot)
        for name, owner in owners.items()
        if owner != NOBODY and counts(reader, spec, chunk, name)
    ]


def _title(owner: Owner) -> str:
    return "hidden_mark" if owner[0] == "mark" else owner[0]


def steering(
    reader: Reader, story: WorldStory, number: int, index: int, steered: Sequence[Reading], twin: Sequence[Reading]
) -> Tally:
    """Does each steer of a shot show within two chunks, is it absent without it, and does all else stay?

    Names: steering (all of that), steering/ATTRIBUTE (the same by what was steered), steering_shows (present, and
    absent in the twin), steering_keeps/mark and /place (as they were before the steer).
    """
    tally = Tally()
    spec = story.shots[index]
    for change in spec.steers:
        judged = steer_window(spec, change.attribute, change.chunk, len(steered))
        window = [chunk for chunk in judged if counts(reader, spec, chunk, change.attribute)]
        if not window:
            continue
        present = any(steered[c][change.attribute] == change.value for c in window)
        absent = all(twin[c][change.attribute] != change.value for c in window)
        before, after = steered[change.chunk - 1], steered[window[-1]]
        kept = {
            name: before[name] == after[name] for name in ("mark", "place") if counts(reader, spec, window[-1], name)
        }
        shows = present and absent
        outcomes = {"steering_shows": shows, "steering": shows and all(kept.values())}
        outcomes[f"steering/{change.attribute}"] = outcomes["steering"]
        outcomes |= {f"steering_keeps/{name}": same for name, same in kept.items()}
        for name, done in outcomes.items():
            tally.add(name, number, "done", "done" if done else "not done", shot=index + 1)
    return tally


def steer_window(spec: ShotSpec, attribute: str, chunk: int, num_chunks: int) -> range:
    """Chunks in which a steer given at `chunk` must show: up to the next steer of the same attribute."""
    later = [s.chunk for s in spec.steers if s.attribute == attribute and s.chunk > chunk]
    return range(chunk, min([chunk + STEER_CHUNKS, num_chunks, *later]))


def last_steered_chunk(spec: ShotSpec, num_chunks: int) -> int:
    """The last chunk that any steer of a shot is judged by; -1 if none is."""
    windows = (steer_window(spec, s.attribute, s.chunk, num_chunks) for s in spec.steers)
    return max((window[-1] for window in windows if window), default=-1)


def never_steered(story: WorldStory) -> WorldStory:
    """The same story with nobody asking for changes."""
    return replace(story, shots=tuple(replace(spec, steers=()) for spec in story.shots))


def counts(reader: Reader, spec: ShotSpec, chunk: int, attribute: str) -> bool:
    """Whether it is fair to score an attribute in a chunk."""
    if attribute == "camera_motion" and chunk == 0:
        return False
    return visible(spec, attribute, chunk) and reader.scored(attribute, spec.framing)
