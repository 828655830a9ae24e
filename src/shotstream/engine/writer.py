"""From what a person types to the caption that the model reads.

A writer gets the scene as it will be and an instruction, and answers with a draft. What is in force is composed at the
chunk where it takes effect: two steers before one boundary merge there, and what does not fit into the text encoder is
left out there, oldest steers first, and reported.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol
from urllib.parse import urlsplit

from shotstream.engine.direction import Scene
from shotstream.story import CaptionStyle, compose_caption

WriterName = Literal["passthrough", "template", "openai"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What a writer made of an instruction."""

    caption: str
    """For a cut: the new shot's caption. For a steer: what is added to the running one, or takes its place."""
    replaces: bool = False
    """For a steer: it takes the place of the shot's caption and earlier steers."""
    notice: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A shot's caption and steers that fit into the text encoder."""

    caption: str
    steers: tuple[str, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Composer:
    """Composes captions as the stream will and knows which are short enough."""

    check: Callable[[str], None]
    """Raises ValueError for a caption that is too long: `Engine.check_caption`."""
    style: CaptionStyle = "natural"

    def check_scene(self, scene: Scene) -> None:
        """Raises ValueError if the scene's caption is too long."""
        self.check(compose_caption(scene.global_caption, scene.caption, scene.steers, style=self.style, shot_index=99))

    def fits(self, global_caption: str, caption: str, steers: Sequence[str]) -> bool:
        try:
            self.check_scene(Scene(global_caption=global_caption, caption=caption, steers=tuple(steers)))
        except ValueError:
            return False
        return True


class Writer(Protocol):
    """Turns instructions into captions. `write` may be called from any thread and may take its time."""

    @property
    def name(self) -> WriterName: ...

    def write(self, scene: Scene, text: str, *, opens: bool) -> Draft:
        """Args: `scene` as it will be without the instruction; `opens`: the instruction is a cut or a start.

        Raises: ValueError, in words for the person, if the instruction cannot be followed.
        """
        ...

    def fit(self, scene: Scene) -> Fitted:
        """Leave out what is too long. Called on the engine thread. Raises ValueError where nothing helps."""
        ...


@dataclass(frozen=True)
class PassthroughWriter:
    """Takes every word as it is, and refuses what is too long."""

    composer: Composer
    name: WriterName = "passthrough"

    def write(self, scene: Scene, text: str, *, opens: bool) -> Draft:
        caption = text.strip()
        self.composer.check_scene(_with(scene, caption, opens))
        return Draft(caption=caption)

    def fit(self, scene: Scene) -> Fitted:
        self.composer.check_scene(scene)
        return Fitted(caption=scene.caption, steers=scene.steers)


@dataclass(frozen=True)
class TemplateWriter:
    """Turns an instruction into plain description with a few rules, and leaves out what does not fit.

    The storyworld model was trained on instructions ("now make him look surprised"), so they stay as they are but for
    courtesies; models of descriptions ("reference" style) get "he looks surprised".
    """

    composer: Composer
    name: WriterName = "template"

    def write(self, scene: Scene, text: str, *, opens: bool) -> Draft:
        caption = _plain(text)
        if self.composer.style == "reference":
            caption = _described(caption, opens)
        self.fit(_with(scene, caption, opens))
        return Draft(caption=caption)

    def fit(self, scene: Scene) -> Fitted:
        steers, left_out = list(scene.steers), list[str]()

        def fits(caption: str) -> bool:
            return self.composer.fits(scene.global_caption, caption, steers)

        while len(steers) > 1 and not fits(scene.caption):
            left_out.append(steers.pop(0))
        if fits(scene.caption):
            return Fitted(caption=scene.caption, steers=tuple(steers), left_out=tuple(left_out))
        caption, rest = _shortened(scene.caption, fits)
        if caption:
            return Fitted(caption=caption, steers=tuple(steers), left_out=(*left_out, rest))
        left_out += steers
        steers.clear()
        caption, rest = _shortened(scene.caption, fits)
        if not caption:
            raise ValueError("the story's global caption fills the text encoder: shorten it")
        return Fitted(caption=caption, steers=(), left_out=(*left_out, *([rest] if rest else [])))


@dataclass(frozen=True)
class NoticingWriter:
    """Another writer, and a notice of what the model cannot draw."""

    writer: Writer
    unknown: Callable[[str], Sequence[object]]
    """Of a caption: what cannot be drawn, each in words for the person."""

    @property
    def name(self) -> WriterName:
        return self.writer.name

    def write(self, scene: Scene, text: str, *, opens: bool) -> Draft:
        draft = self.writer.write(scene, text, opens=opens)
        found = [draft.notice] if draft.notice else []
        return replace(draft, notice="; ".join([*found, *map(str, self.unknown(draft.caption))]))

    def fit(self, scene: Scene) -> Fitted:
        return self.writer.fit(scene)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAIConfig:
    """An endpoint that speaks the chat completions protocol. From the server's configuration, never from a client."""

    base_url: str
    """For example http://127.0.0.1:11434/v1"""
    model: str
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; it may be unset."""
    timeout_s: float = 0.4

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.base_url)
            is_usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            is_usable = False
        if not is_usable:
            raise ValueError(
                f"the writer's base url must be one like http://127.0.0.1:11434/v1, got {self.base_url!r}: correct "
                "--writer-url"
            )


_SYSTEM = (
    "You write captions for a video model. You get the caption of the running shot and an instruction. Answer with one "
    "caption of at most {words} words, present tense, that describes the shot once the instruction is followed: who, "
    "doing what, where, and how the camera sees it. Keep everything that the instruction does not change. Only the "
    "caption, no quotes."
)
_MAX_ANSWER = 64 * 1024


@dataclass
class OpenAIWriter:
    """Asks a language model for the whole caption; where that takes too long or fails, the template writes it."""

    composer: Composer
    config: OpenAIConfig
    words: int = 40
    name: WriterName = "openai"
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "writer"), repr=False)

    def write(self, scene: Scene, text: str, *, opens: bool) -> Draft:
        fallback = TemplateWriter(self.composer).write(scene, text, opens=opens)
        answer = self._pool.submit(self._ask, scene, text, opens)
        try:
            caption = answer.result(timeout=self.config.timeout_s)
            self.fit(Scene(global_caption=scene.global_caption, caption=caption))
        except (OSError, ValueError, TimeoutError) as error:
            answer.cancel()
            reason = str(error) or "no answer in time"
            return Draft(caption=fallback.caption, notice=f"written without the language model: {reason}")
        return Draft(caption=caption, replaces=not opens)

    def fit(self, scene: Scene) -> Fitted:
        return TemplateWriter(self.composer).fit(scene)

    def _ask(self, scene: Scene, text: str, opens: bool) -> str:
        import httpx

        now = compose_caption("", scene.caption, scene.steers) if scene.caption else "none yet"
        task = "a new shot" if opens else "a change inside the running shot"
        question = f"Story: {scene.global_caption or 'none'}\nRunning shot: {now}\nInstruction ({task}): {text}"
        body = {
            "model": self.config.model,
            "temperature": 0,
            "max_tokens": 3 * self.words,
            "messages": [
                {"role": "system", "content": _SYSTEM.format(words=self.words)},
                {"role": "user", "content": question},
            ],
        }
        key = os.environ.get(self.config.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{self.config.base_url.rstrip('/')}/chat/completions"
        try:
            response = httpx.post(url, json=body, headers=headers, timeout=self.config.timeout_s)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OSError(f"the endpoint cannot be reached ({type(error).__name__})") from error
        if response.status_code != 200 or len(response.content) > _MAX_ANSWER:
            raise OSError(f"the endpoint answered {response.status_code}")
        return _answer(response.text)


def _answer(body: str) -> str:
    """The caption in a chat completion. Raises ValueError if there is none."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError("the endpoint's answer is not a chat completion") from error
    caption = " ".join(str(content).split()).strip("\"'")
    if not caption:
        raise ValueError("the endpoint's answer is empty")
    return caption[:2000]


def _with(scene: Scene, caption: str, opens: bool) -> Scene:
    """The scene once an instruction has taken effect."""
    if opens:
        return Scene(global_caption=scene.global_caption, caption=caption)
    return Scene(global_caption=scene.global_caption, caption=scene.caption, steers=(*scene.steers, caption))


_COURTESY = re.compile(
    r"^(?:please|can you|could you|would you|ok|okay|hey)[, ]+|[, ]*\bplease\b[.!?]?$", re.IGNORECASE
)
_TRANSITION = re.compile(
    r"^(?:now |then |next,? )?(?:(?:hard )?cut|transition|switch|move|go|jump)(?: over)? to (?:a shot of )?", re.I
)
_VERBS = (
    r"be|bow|burn|carry|catch|chase|clap|climb|close|come|cook|cough|cross|cry|dance|disappear|do|"
    r"drink|drive|drop|eat|enter|explode|fade|fall|fight|float|fly|follow|freeze|frown|get|give|"
    r"glow|go|grab|grin|have|hide|hold|hug|jog|jump|kick|kiss|kneel|land|laugh|lean|leap|leave|"
    r"lie|lift|lower|melt|move|nod|open|paint|pick|play|point|pour|pull|push|put|rain|raise|"
    r"reach|read|ride|rise|roll|run|say|shake|shiver|shout|show|sing|sit|sleep|smile|sneak|sneeze|"
    r"snow|speak|spin|stand|stare|start|stop|stretch|stroll|stumble|swim|take|talk|think|throw|"
    r"tremble|turn|use|vanish|wait|wake|walk|wave|wear|whisper|work|write|yawn"
)
"""After a subject these are verbs; another word may be an adjective ("make it darker"), which does not take an s."""
_WHO = r"(him|her|it|them|the (?:[\w-]+ ){0,5}?[\w-]+)"
_MAKE_LOOK = re.compile(rf"^(?:now |then )?(?:make|let) {_WHO} (?:look|seem|be|become) (.+)$", re.I)
_MAKE_DO = re.compile(rf"^(?:now |then )?(?:make|let) {_WHO} (?:start to )?({_VERBS})\b(.*)$", re.I)
_SUBJECT = {"him": "he", "her": "she", "it": "it", "them": "they"}


def _plain(text: str) -> str:
    """One line without courtesies."""
    line = " ".join(text.split())
    plain = _COURTESY.sub("", _COURTESY.sub("", line)).strip()
    return plain or line


def _described(text: str, opens: bool) -> str:
    """An instruction as description: "make him look sad" -> "he looks sad", "cut to the city" -> "the city"."""
    if opens:
        return _TRANSITION.sub("", text) or text
    if match := _MAKE_LOOK.match(text):
        return f"{_subject(match[1])} {_verb('look', match[1])} {match[2]}"
    if match := _MAKE_DO.match(text):
        return f"{_subject(match[1])} {_verb(match[2], match[1])}{match[3]}"
    return re.sub(r"^now ", "", text, flags=re.I)


def _subject(who: str) -> str:
    return _SUBJECT.get(who.lower(), who)


def _verb(verb: str, who: str) -> str:
    """As it follows what is named: "walks" after "the fox", "walk" after "the two foxes"."""
    many = who.lower() == "them" or " and " in who or re.search(r"[^s]s$|\b(?:men|women|children|people)$", who)
    if many:
        return "are" if verb == "be" else verb
    if verb in ("be", "have"):
        return "is" if verb == "be" else "has"
    if re.search(r"(?:s|x|z|ch|sh|o)$", verb):
        return f"{verb}es"
    return re.sub(r"(?<![aeiou])y$", "ie", verb) + "s"


def _shortened(caption: str, fits: Callable[[str], bool]) -> tuple[str, str]:
    """The longest beginning that fits, cut between words, and the rest; "" if not even one word does."""
    words = caption.split()
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(" ".join(words[:middle])) else (low, middle - 1)
    return " ".join(words[:low]).rstrip(",;:"), " ".join(words[low:])
