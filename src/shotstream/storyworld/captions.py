"""Captions: how a story is told in words, with what is left out left to defaults or to memory.

A caption is built in two steps. First `_decide` chooses which attributes are said: everything that neither a default,
nor the global caption, nor an earlier shot would tell, and some of the rest. Then a template arranges the phrases. What
is not said has its default (standing, neutral, medium, still, one person), or is what memory shows (person, clothing,
place, time, weather). Marks and layouts have no words here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shotstream.storyworld.cast import CAST
from shotstream.storyworld.places import PLACES
from shotstream.storyworld.spec import MOVING_ACTIONS, NOBODY, Change, ShotSpec

MAX_PIECES = 58
"""Words and punctuation of global caption, shot and steers; the text encoder reads 64 pieces, two of them its own."""

TIME_PHRASES: dict[str, tuple[str, ...]] = {
    "day": ("in the daytime", "during the day", "by day"),
    "sunset": ("at sunset", "as the sun sets", "in the evening light"),
    "night": ("at night", "after dark", "in the dark of night"),
}
WEATHER_PHRASES: dict[str, tuple[str, ...]] = {
    "clear": ("in clear weather", "under a clear sky"),
    "rain": ("in the rain", "while it rains", "as rain falls"),
    "snow": ("in falling snow", "while it snows", "as snow falls"),
}
ACTION_FORMS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "standing": (("stands still", "standing still", "stand still"), ("stands", "standing", "stand")),
    "walking": (
        ("walks", "walking", "walk"),
        ("walks along", "walking along", "walk along"),
        ("strolls", "strolling", "stroll"),
    ),
    "running": (
        ("runs", "running", "run"),
        ("runs fast", "running fast", "run fast"),
        ("sprints", "sprinting", "sprint"),
    ),
    "jumping": (("jumps", "jumping", "jump"), ("jumps up and down", "jumping up and down", "jump up and down")),
    "waving": (
        ("waves", "waving", "wave"),
        ("waves hello", "waving hello", "wave hello"),
        ("waves a hand", "waving a hand", "wave a hand"),
    ),
    "dancing": (("dances", "dancing", "dance"),),
    "sitting": (("sits", "sitting", "sit down"), ("sits on the ground", "sitting on the ground", "sit on the ground")),
    "reading": (("reads a book", "reading a book", "read a book"), ("reads", "reading", "read")),
}
"""Third person, gerund, infinitive."""
FACE_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "neutral": ("calm", "relaxed"),
    "happy": ("happy", "cheerful", "joyful"),
    "sad": ("sad", "unhappy"),
    "angry": ("angry", "furious", "mad"),
    "surprised": ("surprised", "astonished", "shocked"),
    "sleepy": ("sleepy", "tired", "drowsy"),
}
FACE_EXTRAS: dict[str, tuple[str, ...]] = {
    "neutral": ("with a calm face",),
    "happy": ("with a big smile", "smiling", "laughing"),
    "sad": ("in tears", "crying"),
    "angry": ("with an angry face", "frowning with rage"),
    "surprised": ("with a surprised face", "with wide eyes and open mouth"),
    "sleepy": ("half asleep", "with heavy eyes"),
}
FRAMING_PHRASES: dict[str, tuple[str, ...]] = {
    "wide": ("a wide shot", "a wide view", "a long shot"),
    "medium": ("a medium shot", "a mid shot", "a waist shot"),
    "close-up": ("a close-up", "a close shot", "a tight close-up"),
}
CAMERA_PHRASES: dict[str, tuple[str, ...]] = {
    "still": ("static camera", "the camera does not move"),
    "pan": ("the camera pans", "slow pan", "the camera glides sideways"),
    "push-in": ("the camera pushes in", "slow push-in", "the camera moves closer"),
}
ANGLE_PHRASES = ("facing {}", "turned to the {}", "looking {}")
CLOTHING_PHRASES = ("in a {} coat", "in {}", "wearing {}", "dressed in {}", "in {} clothes")
OBJECT_PRONOUNS = {"he": "him", "she": "her", "it": "it"}


@dataclass(frozen=True, slots=True)
class Template:
    """How phrases are arranged. `needs` are the phrases it cannot do without."""

    text: str
    needs: frozenset[str] = frozenset()
    later: bool = False
    """Only after the first shot."""
    heldout: bool = False


_TAIL = "{time} {weather}, {face}, {angle}"


def _template(text: str, *needs: str, later: bool = False, heldout: bool = False) -> Template:
    return Template(text.replace("{tail}", _TAIL), frozenset(needs), later, heldout)


TEMPLATES: tuple[Template, ...] = (
    _template("{framing} of {whom} {doing} {place} {tail}. {camera}", "framing"),
    _template("{framing} of {whom} {doing} {place} {tail}, {camera}", "framing"),
    _template("{framing}: {who} {does} {place} {tail}. {camera}", "framing"),
    _template("{who} {does} {place} {tail}. {framing}, {camera}"),
    _template("{who} {does} {place} {tail}, {framing}. {camera}"),
    _template("{place} {time} {weather}, {who} {does}, {face}, {angle}. {framing}. {camera}", "place"),
    _template("{framing} {place} {time} {weather}. {who} {does}, {face}, {angle}. {camera}", "framing", "place"),
    _template("{whom} {doing} {place} {tail}, {framing}, {camera}", "name"),
    _template("{camera}. {framing} of {whom} {doing} {place} {tail}", "framing", "camera"),
    _template("now {framing}: {who} {does} {place} {tail}. {camera}", "framing", later=True),
    _template("cut to {framing} of {whom} {doing} {place} {tail}. {camera}", "framing", later=True),
    _template("cut to {whom} {doing} {place} {tail}. {framing}. {camera}", later=True),
    _template(
        "transition to {framing} of {scene} {time} {weather}. {who} {does}, {face}, {angle}. {camera}",
        "framing",
        "place",
        later=True,
    ),
    _template(
        "transition to {scene} {time} {weather}. {framing} of {whom} {doing}, {face}, {angle}. {camera}",
        "framing",
        "place",
        later=True,
    ),
    _template("now {who} {does} {place} {tail}. {framing}. {camera}", later=True),
    _template("then {who} {does} {place} {tail}. {framing}. {camera}", later=True),
    _template("we see {whom} {doing} {place} {tail}. {framing}. {camera}", heldout=True),
    _template("in {framing}, {who} {does} {place} {tail}. {camera}", "framing", heldout=True),
    _template(
        "{who}, {face}, {angle}, {does} {place} {time} {weather}. {framing}. {camera}", "name", "action", heldout=True
    ),
    _template("next, {who} {does} {place} {tail}. {framing}. {camera}", later=True, heldout=True),
    _template("switch to {framing} of {whom} {doing} {place} {tail}. {camera}", "framing", later=True, heldout=True),
    _template(
        "{framing} shows {scene} {time} {weather}, where {who} {does}, {face}, {angle}. {camera}",
        "framing",
        "place",
        heldout=True,
    ),
)
BARE_TEMPLATES = (
    _template("transition to {framing} of {scene} {time} {weather}. {angle}. {camera}", later=True),
    _template("cut to {framing} of {scene} {time} {weather}. {angle}. {camera}", later=True),
    _template("now {framing} of {scene} {time} {weather}. {angle}. {camera}", later=True),
    _template("switch to {framing} of {scene} {time} {weather}. {angle}. {camera}", later=True, heldout=True),
)
"""The scene without a word about who is in it: the one we know, standing there."""

STEER_TEMPLATES: dict[str, tuple[Template, ...]] = {
    "expression": (
        _template("now make {whom} look {adjective}"),
        _template("make {whom} {adjective}"),
        _template("{who} looks {adjective} now"),
        _template("now {who} looks {adjective}"),
        _template("suddenly {who} is {adjective}"),
        _template("{who} becomes {adjective}"),
        _template("let {whom} seem {adjective}", heldout=True),
        _template("{who} turns {adjective}", heldout=True),
    ),
    "action": (
        _template("now {who} starts to {infinitive}"),
        _template("now make {whom} {infinitive}"),
        _template("{who} begins to {infinitive}"),
        _template("{who} {does} now"),
        _template("then {who} {does}"),
        _template("let {whom} {infinitive}", heldout=True),
        _template("suddenly {who} {does}", heldout=True),
    ),
}
WEATHER_STEERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rain": (("make it rain", "it starts to rain", "now it is raining"), ("rain begins to fall",)),
    "snow": (("make it snow", "it starts to snow", "now it is snowing"), ("snow begins to fall",)),
    "clear": (("the sky clears up", "now the weather is clear", "make the sky clear"), ("the weather turns clear",)),
}
"""For training, and held out."""

GLOBAL_TEMPLATES = (
    _template("a story about {cast} {setting}"),
    _template("a short film about {cast} {setting}"),
    _template("the adventures of {cast} {setting}"),
    _template("{cast} {setting}"),
    _template("meet {cast} {setting}"),
    _template("once there was {cast} {setting}"),
    _template("a picture book with {cast} {setting}"),
    _template("in this film: {cast} {setting}"),
    _template("a cartoon of {cast} {setting}", heldout=True),
    _template("this is a tale of {cast} {setting}", heldout=True),
)

GLOBAL_CLOTHING_PHRASES = ("in {}", "in {}", *CLOTHING_PHRASES[:3], "with a {} coat")
"""For training. Held-out captions say "in red": what is to be learnt is whose coat it is, not one way to say so."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the global caption already told."""

    people: frozenset[str] = frozenset()
    clothed: frozenset[str] = frozenset()
    place: str = ""
    place_time: bool = False

    def by_attribute(self) -> dict[str, frozenset[str]]:
        """Whose character, whose clothing was told."""
        return {"character": self.people, "clothing": self.clothed}


def write_story(rng: random.Random, specs: Sequence[ShotSpec], heldout: bool) -> tuple[str, list[ShotSpec]]:
    """A global caption (empty for half of the stories), and the specs with captions, `stated` and `known` filled in.

    The specs must carry their `sources` already: what earlier shots show may be left out.
    """
    global_caption, facts = _global(rng, specs, heldout) if rng.random() < 0.5 else ("", _Facts())
    room = MAX_PIECES - count_pieces(global_caption)
    return global_caption, [_write_shot(rng, specs, index, facts, heldout, room) for index in range(len(specs))]


def count_pieces(text: str) -> int:
    """Words and punctuation marks, close to the number of word pieces for these captions."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _write_shot(
    rng: random.Random, specs: Sequence[ShotSpec], index: int, facts: _Facts, heldout: bool, room: int
) -> ShotSpec:
    spec = specs[index]
    steers = tuple(replace(c, caption=_steer(rng, spec, c, heldout)) for c in spec.steers)
    room -= sum(count_pieces(change.caption) + 1 for change in steers)
    for attempt in range(8):
        stated = _decide(rng, specs, index, facts, chatty=attempt < 4)
        caption = _arrange(rng, specs, index, stated, heldout)
        if count_pieces(caption) + 2 <= room:
            break
    defaults = {"action", "expression", "framing", "camera_motion", "time_of_day", "weather", "second_character"}
    if spec.second_character == NOBODY:
        defaults |= {"second_clothing", "second_mark"}
    resolved = "character" in stated or len(facts.people) == 1  # "him" may be either of two people
    told = {name: resolved and spec.character in group for name, group in facts.by_attribute().items()}
    told["place"] = facts.place == spec.place
    told["time_of_day"] = facts.place_time and facts.place == spec.place
    known = stated | defaults | {name for name, is_told in told.items() if is_told}
    said = stated | {name for name, is_told in told.items() if is_told}
    return replace(spec, caption=caption, steers=steers, stated=frozenset(said), known=frozenset(known))


def _decide(rng: random.Random, specs: Sequence[ShotSpec], index: int, facts: _Facts, chatty: bool) -> set[str]:
    """Which attributes to say: what nothing else tells, and now and then what is known anyway."""
    spec = specs[index]
    previous = specs[index - 1] if index else None

    def maybe(chance: float) -> bool:
        return chatty and rng.random() < chance

    only_one = len({name for s in specs for name in (s.character, s.second_character) if name != NOBODY}) == 1
    same_person = previous is not None and previous.character == spec.character
    clear_who = same_person and previous is not None and previous.second_character == NOBODY
    clear_who = (clear_who or (only_one and spec.character in facts.people)) and spec.second_character == NOBODY
    same_place = previous is not None and previous.place == spec.place
    revisited = bool(spec.recall_sources("place"))
    special_before = any(s.time_of_day != "day" for s in specs[:index])
    wet_before = any(s.weather != "clear" or any(c.attribute == "weather" for c in s.steers) for s in specs[:index])
    steered_here = any(c.attribute == "weather" for s in specs[:index] if s.place == spec.place for c in s.steers)
    outdoors = len(PLACES[spec.place].weathers) > 1
    # Whose of two coats is whose is hard to read from the global caption: mostly said again when they first appear.
    clothed = facts.clothed if len(facts.clothed) == 1 else frozenset()
    dressed = bool(spec.recall_sources("clothing")) or spec.character in clothed
    second_dressed = bool(spec.recall_sources("second_clothing")) or spec.second_character in clothed
    told_time = facts.place_time and facts.place == spec.place
    wanted = {
        "character": not clear_who or maybe(0.45),
        "place": not (same_place or facts.place == spec.place) or maybe(0.4),
        "time_of_day": (not revisited and not told_time and (spec.time_of_day != "day" or special_before))
        or maybe(0.2),
        "weather": outdoors
        and (steered_here or (not revisited and (spec.weather != "clear" or wet_before)) or maybe(0.15)),
        "action": spec.action != "standing" or maybe(0.4),
        "expression": spec.expression != "neutral" or maybe(0.2),
        "framing": spec.framing != "medium" or maybe(0.65),
        "camera_motion": spec.camera_motion != "still"
        or (maybe(0.12) and spec.action not in MOVING_ACTIONS and not _starts_moving(spec)),
        "angle": maybe(0.3),
        "second_character": spec.second_character != NOBODY,
        "second_clothing": spec.second_character != NOBODY
        and (maybe(0.2) or (not second_dressed and rng.random() < 0.85)),
    }
    wanted["clothing"] = wanted["character"] and (maybe(0.15) or (not dressed and rng.random() < 0.88))
    return {attribute for attribute, say in wanted.items() if say}


def _starts_moving(spec: ShotSpec) -> bool:
    return any(change.value in MOVING_ACTIONS for change in spec.steers)


def _arrange(rng: random.Random, specs: Sequence[ShotSpec], index: int, stated: set[str], heldout: bool) -> str:
    """Put the phrases of what is stated into a template that suits them."""
    spec = specs[index]
    phrases = _phrases(rng, specs, index, stated)
    silent = not stated & {"character", "action", "expression"} and {"framing", "place"} <= stated
    if silent and index and rng.random() < 0.7:
        template = rng.choice([t for t in BARE_TEMPLATES if t.heldout == heldout])
        phrases["angle"] = f"{CAST[spec.character].pronoun} is {phrases['angle']}" if phrases["angle"] else ""
    else:
        have = {name for name, phrase in phrases.items() if phrase}
        have |= ({"name"} if "character" in stated else set()) | stated
        fitting = [t for t in TEMPLATES if t.heldout == heldout and t.needs <= have and (index or not t.later)]
        template = rng.choice(fitting)
    return _tidy(rng, template.text.format(**phrases))


def _phrases(rng: random.Random, specs: Sequence[ShotSpec], index: int, stated: set[str]) -> dict[str, str]:
    spec = specs[index]

    def said(attribute: str, options: Sequence[str]) -> str:
        return rng.choice(options) if attribute in stated else ""

    does, doing, _ = rng.choice(ACTION_FORMS[spec.action])
    if "action" not in stated:
        does, doing = "is" if stated & {"place", "expression", "angle"} else "is here", ""
    adjective, face = "", ""
    if "expression" in stated:
        word = rng.choice(FACE_ADJECTIVES[spec.expression])
        if "character" in stated and rng.random() < 0.3:
            adjective = word
        else:
            extras = [f for f in FACE_EXTRAS[spec.expression] if "action" in stated or not f.startswith("with ")]
            face = rng.choice((f"looking {word}", f"looking {word}", *extras))
    who, whom = _subject(rng, specs, index, stated, adjective)
    return {
        "who": who,
        "whom": whom,
        "does": does,
        "doing": doing,
        "face": face,
        "place": said("place", PLACES[spec.place].phrases),
        "scene": said("place", PLACES[spec.place].nouns),
        "time": said("time_of_day", TIME_PHRASES[spec.time_of_day]),
        "weather": said("weather", WEATHER_PHRASES[spec.weather]),
        "framing": said("framing", FRAMING_PHRASES[spec.framing]),
        "camera": said("camera_motion", CAMERA_PHRASES[spec.camera_motion]),
        "angle": said("angle", ANGLE_PHRASES).format(spec.angle),
    }


def _subject(
    rng: random.Random, specs: Sequence[ShotSpec], index: int, stated: set[str], adjective: str
) -> tuple[str, str]:
    """The shot's subject as subject and as object: a name for those not seen before, else a name or a pronoun."""
    spec = specs[index]
    pronoun = CAST[spec.character].pronoun
    if "character" not in stated:
        return pronoun, OBJECT_PRONOUNS[pronoun]
    who = _named(rng, spec.character, bool(spec.recall_sources("character")), adjective)
    if "clothing" in stated:
        who += " " + rng.choice(CLOTHING_PHRASES).format(spec.clothing)
    if spec.second_character != NOBODY:
        other = _named(rng, spec.second_character, bool(spec.recall_sources("second_mark")), "")
        if "second_clothing" in stated:
            other += " " + rng.choice(CLOTHING_PHRASES[:3]).format(spec.second_clothing)
        who += f" {rng.choice(('next to', 'beside', 'with'))} {other}"
    return who, who


def _named(rng: random.Random, name: str, seen: bool, adjective: str) -> str:
    noun = f"{adjective} {name}".strip()
    if seen:
        return rng.choice(("the ", "the ", "the same ")) + noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _steer(rng: random.Random, spec: ShotSpec, change: Change, heldout: bool) -> str:
    if change.attribute == "weather":
        return rng.choice(WEATHER_STEERS[change.value][int(heldout)])
    pronoun = CAST[spec.character].pronoun
    named = rng.random() < (0.2 if spec.second_character == NOBODY else 1.0)
    template = rng.choice([t for t in STEER_TEMPLATES[change.attribute] if t.heldout == heldout])
    phrases = {
        "who": f"the {spec.character}" if named else pronoun,
        "whom": f"the {spec.character}" if named else OBJECT_PRONOUNS[pronoun],
    }
    if change.attribute == "expression":
        phrases["adjective"] = rng.choice(FACE_ADJECTIVES[change.value])
    else:
        phrases["does"], _, phrases["infinitive"] = rng.choice(ACTION_FORMS[change.value])
    return _tidy(rng, template.text.format(**phrases))


def _global(rng: random.Random, specs: Sequence[ShotSpec], heldout: bool) -> tuple[str, _Facts]:
    """Introduce the lead, or both of two people, and the place if there is only one."""
    clothes = {s.character: s.clothing for s in specs}
    clothes |= {s.second_character: s.second_clothing for s in specs if s.second_character != NOBODY}
    people = list(clothes)[:2] if len(clothes) == 2 else [specs[0].character]
    clothed = rng.random() < 0.7
    if not heldout:
        # Who is named first must not tell who leads a shot, or whose coat is whose would be guessed and not read.
        rng.shuffle(people)
    clothing = "in {}" if heldout else rng.choice(GLOBAL_CLOTHING_PHRASES)
    worn = {name: " " + clothing.format(clothes[name]) if clothed else "" for name in people}
    cast = [_named(rng, name, False, "") + worn[name] for name in people]
    place, place_time, setting = "", False, ""
    if len({s.place for s in specs}) == 1 and rng.random() < 0.6:
        place = specs[0].place
        place_time = len(people) == 1 and (specs[0].time_of_day != "day" or rng.random() < 0.3)
        time = rng.choice(TIME_PHRASES[specs[0].time_of_day]) if place_time else ""
        setting = f"{rng.choice(PLACES[place].phrases)} {time}"
    template = rng.choice([t for t in GLOBAL_TEMPLATES if t.heldout == heldout])
    caption = _tidy(rng, template.text.format(cast=" and ".join(cast), setting=setting))
    return caption, _Facts(frozenset(people), frozenset(people if clothed else ()), place, place_time)


def _tidy(rng: random.Random, text: str) -> str:
    """Drop what empty phrases leave behind; start some captions with a capital, end some with a full stop."""
    text = re.sub(r"\s+", " ", text)
    sentences = [_tidy_sentence(part) for part in text.split(".")]
    sentences = [part for part in sentences if part]
    if rng.random() < 0.6:
        return ". ".join(part[0].upper() + part[1:] for part in sentences) + ("." if rng.random() < 0.7 else "")
    return ", ".join(sentences) if rng.random() < 0.3 else ". ".join(sentences)


def _tidy_sentence(text: str) -> str:
    parts = [part.strip() for part in text.split(",")]
    sentence = ", ".join(part for part in parts if part)
    return re.sub(r"\bis, ", "is ", sentence).strip(" :,")
