"""Does the text encoder tell a generator what a caption says? Ask before training on its states.

A readout as weak as the generator's own reading (the DiT's text embedding and one cross-attention layer, with a learned
query per attribute in place of the picture) must recover every attribute that a caption states, and which of two people
is meant. What it cannot read from frozen states, no generator will.

S captions · L text positions · E width of the readout · D width of a token state · A attributes
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from shotstream.engine.loading import default_dtype
from shotstream.models.text import MiniLMEncoder
from shotstream.storyworld import ATTRIBUTES, HIDDEN, ShotSpec, WorldStory, sample_story
from shotstream.storyworld.spec import NOBODY

log = logging.getLogger(__name__)

READ = tuple(name for name in ATTRIBUTES if name not in HIDDEN)
SILENT_DEFAULTS = ("action", "expression", "framing", "camera_motion", "second_character")
"""Attributes that have their default value where no caption states them."""
UNSCORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSet:
    """Composed captions and the class of each attribute in each, or UNSCORED."""

    captions: list[str]
    stated: Tensor
    """[S, A] class of what the caption says."""
    silent: Tensor
    """[S, A] class of what holds because the caption says nothing."""
    two_people: Tensor
    """[S] bool."""


def caption_set(split: str, num_captions: int, *, first_seed: int = 0, told_before: float = 0.0) -> CaptionSet:
    """Composed captions of stories, half of them of shots with two people, of steered shots also before each steer.

    In stories two people are rare: as many captions as a readout can be trained on would hold too few to learn who is
    who, and the check would find out about the readout rather than about the text states.

    Args: told_before: share of further captions of two people whose lead's coat only the story's introduction tells;
        they are one in five of those of two people, and what is learnt last. The rest is halved as before.
    """
    rows: dict[str, list[_Row]] = {"two": [], "one": [], "told before": []}
    special = int(num_captions * told_before)
    wanted = {"two": (num_captions - special) // 2, "one": (num_captions - special) // 2, "told before": special}
    for seed in count(first_seed):
        story = sample_story(seed, split=split)
        for index, spec in enumerate(story.shots):
            kind = "one" if spec.second_character == NOBODY else "two"
            if kind == "two" and len(rows[kind]) == wanted[kind] and _is_told_before(spec):
                kind = "told before"
            for chunk in sorted({0, *(change.chunk for change in spec.steers)}):
                if len(rows[kind]) < wanted[kind]:
                    rows[kind].append((story.captions(index, chunk), *_targets(story, index, chunk)))
        if all(len(rows[kind]) == number for kind, number in wanted.items()):
            break
    two = [*rows["two"], *rows["told before"]]
    captions, stated, silent = zip(*two, *rows["one"], strict=True)
    return CaptionSet(
        captions=list(captions),
        stated=torch.tensor(stated),
        silent=torch.tensor(silent),
        two_people=torch.arange(len(captions)) < len(two),
    )


_Row = tuple[str, list[int], list[int]]
"""Caption, classes stated, classes of what is left out."""


def _is_told_before(spec: ShotSpec) -> bool:
    """Whether the lead's coat is told, but not by the shot's own caption."""
    return "clothing" in spec.stated and spec.clothing not in spec.caption


def _targets(story: WorldStory, index: int, chunk: int) -> tuple[list[int], list[int]]:
    """Classes of what the caption says, and of what holds because it is silent."""
    labels = story.shots[index].labels(chunk)
    said = said_attributes(story, index, chunk)
    quiet = set(SILENT_DEFAULTS) - said

    def classes(names: set[str]) -> list[int]:
        return [ATTRIBUTES[name].index(labels[name]) if name in names else UNSCORED for name in READ]

    return classes(said), classes(quiet)


def said_attributes(story: WorldStory, index: int, chunk: int) -> set[str]:
    """What the composed caption of a chunk says in words."""
    spec = story.shots[index]
    return set(spec.stated) | {change.attribute for change in spec.steers if change.chunk <= chunk}


def _precision() -> torch.autocast:
    """bfloat16 where the CPU has it."""
    cpu = torch.device("cpu")
    return torch.autocast("cpu", torch.bfloat16, enabled=default_dtype(cpu) == torch.bfloat16)


@torch.no_grad()
def encode_captions(encoder: MiniLMEncoder, captions: Sequence[str], *, batch: int = 64) -> Tensor:
    """Token states [S, L, D] in float16; captions of a like length are encoded together."""
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    states = torch.zeros(len(captions), encoder.config.length, encoder.config.width, dtype=torch.float16)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        with _precision():
            states[rows] = encoder.encode([captions[i] for i in rows]).half()
    return states


class Readout(nn.Module):
    """The DiT's text embedding, one cross-attention layer with a learned query per attribute, linear classes.

    With two hops, queries go on from what all of them found, as those of the DiT's blocks do: "the bear" in one
    sentence leads to the coat of the bear in another. With `refiners` the tokens first read one another, in as many
    layers as a generator would have to have. A `top` of layers of the encoder, before all else, learns as well.
    """

    def __init__(
        self,
        text_width: int,
        *,
        width: int = 256,
        num_heads: int = 2,
        hops: int = 1,
        refiners: int = 0,
        top: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.top = nn.Identity() if top is None else top
        self.embedding = nn.Sequential(
            nn.Linear(text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.refiners = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(refiners)
        )
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.randn(len(READ), width) / 4)
        self.key_values = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(hops))
        self.hops = nn.ModuleList(_Hop(width) for _ in range(hops - 1))
        self.heads = nn.ModuleList(nn.Linear(width, len(ATTRIBUTES[name])) for name in READ)

    def forward(self, states_SLD: Tensor) -> list[Tensor]:
        """Logits [S, classes], one tensor per attribute of READ."""
        text_SLE = self.refined(states_SLD)
        read_SAE = self._look(0, self.queries.expand(len(text_SLE), -1, -1), text_SLE)
        for i, hop in enumerate(self.hops):
            read_SAE = read_SAE + self._look(i + 1, hop(read_SAE), text_SLE)
        return [head(read_SAE[:, i]) for i, head in enumerate(self.heads)]

    def refined(self, states_SLD: Tensor) -> Tensor:
        """Embedded tokens [S, L, E] after they have read one another."""
        text_SLE: Tensor = self.embedding(self.top(states_SLD))
        nothing_SL = states_SLD.eq(0).all(-1)
        for refiner in self.refiners:
            text_SLE = refiner(text_SLE, src_key_padding_mask=nothing_SL)
        return text_SLE

    def _look(self, hop: int, query_SAE: Tensor, text_SLE: Tensor) -> Tensor:
        k_SLE, v_SLE = self.key_values[hop](text_SLE).chunk(2, dim=-1)
        q_SNAH, k_SNLH, v_SNLH = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query_SAE, k_SLE, v_SLE)
        )
        # Scale 1: the queries are learned, and start small.
        read_SNAH = nn.functional.scaled_dot_product_attention(q_SNAH, k_SNLH, v_SNLH, scale=1.0)
        return read_SNAH.transpose(1, 2).flatten(2)


class _Hop(nn.Module):
    """New queries from what all attributes read so far."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attributes = nn.Parameter(torch.randn(len(READ), width) / width**0.5)
        self.norm = nn.LayerNorm(width)
        self.share = nn.MultiheadAttention(width, 4, batch_first=True)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, read_SAE: Tensor) -> Tensor:
        x_SAE = self.norm(read_SAE) + self.attributes
        x_SAE = x_SAE + self.share(x_SAE, x_SAE, x_SAE, need_weights=False)[0]
        out: Tensor = self.out(x_SAE)
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutConfig:
    """How the readout is trained."""

    steps: int = 1500
    batch_size: int = 96
    width: int = 256
    hops: int = 1
    """Cross-attention layers."""
    refiners: int = 0
    """Self-attention layers over the tokens before them."""
    learning_rate: float = 2e-3
    top_learning_rate: float = 2e-4
    """Of the encoder's own layers, where they learn as well."""
    seed: int = 0


def train_readout(states: Tensor, targets: Tensor, config: ReadoutConfig, top: nn.Module | None = None) -> Readout:
    """Fit a readout, and if given the encoder's top, to token states [S, L, D] and classes [S, A]."""
    torch.manual_seed(config.seed)
    readout = Readout(states.shape[-1], width=config.width, hops=config.hops, refiners=config.refiners, top=top)
    upper = list(readout.top.parameters())
    others = [p for name, p in readout.named_parameters() if not name.startswith("top.")]
    groups, rates = [{"params": others}], [config.learning_rate]
    if upper:
        groups, rates = [*groups, {"params": upper}], [*rates, config.top_learning_rate]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=config.steps)
    for step in range(config.steps):
        rows = torch.randint(len(states), (config.batch_size,))
        loss = readout_loss(readout, states[rows], targets[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            log.info("step %d of %d, loss %.4f", step, config.steps, float(loss.detach()))
    return readout.eval()


def readout_loss(readout: Readout, states: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the scored attributes."""
    with _precision():
        logits = readout(states.float())
    losses = [
        nn.functional.cross_entropy(logit.float(), targets[:, i], ignore_index=UNSCORED, reduction="sum")
        for i, logit in enumerate(logits)
    ]
    return torch.stack(losses).sum() / (targets != UNSCORED).sum()


@torch.no_grad()
def predict(readout: Readout, states: Tensor, *, batch: int = 256) -> Tensor:
    """Predicted classes [S, A]."""
    parts = [
        torch.stack([logit.argmax(-1) for logit in readout(part.float())], 1) for part in torch.split(states, batch)
    ]
    return torch.cat(parts)


def accuracies(predicted: Tensor, targets: Tensor) -> dict[str, tuple[float, int]]:
    """Attribute -> (share read correctly, number of captions that count)."""
    result = {}
    for i, name in enumerate(READ):
        asked = targets[:, i] != UNSCORED
        if asked.any():
            right = (predicted[asked, i] == targets[asked, i]).double().mean()
            result[name] = (float(right), int(asked.sum()))
    return result


def summary(predicted: Tensor, captions: CaptionSet) -> dict[str, Mapping[str, tuple[float, int]]]:
    """Accuracy per attribute: stated; stated where two people are named; left out and therefore the default."""
    people = captions.two_people
    return {
        "stated": accuracies(predicted, captions.stated),
        "stated_of_two_people": accuracies(predicted[people], captions.stated[people]),
        "left_out": accuracies(predicted, captions.silent),
    }


def mistakes(predicted: Tensor, captions: CaptionSet, attribute: str, *, limit: int = 20) -> list[tuple[str, str, str]]:
    """(caption, value that it states, value read) for captions whose attribute was misread."""
    i, values = READ.index(attribute), ATTRIBUTES[attribute]
    target = captions.stated[:, i]
    wrong = ((target != UNSCORED) & (predicted[:, i] != target)).nonzero()[:, 0].tolist()
    return [(captions.captions[s], values[int(target[s])], values[int(predicted[s, i])]) for s in wrong[:limit]]
