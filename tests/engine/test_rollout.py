"""What the chunk loop promises: streaming is the masked form, streams are independent, long shots stay exact."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from shotstream.diffusion.flow import velocity_to_clean
from shotstream.engine.cache import SlabConfig
from shotstream.engine.rollout import ChunkAbandoned, Context, DenoisedChunk, NoiseSource, Rollout, RolloutConfig
from shotstream.models.attention import SegmentAttention, attend_plain
from shotstream.models.dit import CaptionKV, DiT, DiTConfig
from shotstream.models.rope import Rotary, rotate

TOLERANCE = 2e-5
CHUNK, CONTEXT, CHANNELS, SIZE, TOKENS = 3, 6, 4, 4, 4
SLAB = SlabConfig(context_frames=CONTEXT, window_frames=21, sink_frames=3, chunk_frames=CHUNK)
CONFIG = RolloutConfig(timesteps=(1000.0, 950.0, 700.0), slab=SLAB)
WINDOW = SLAB.window_chunks


@dataclass(frozen=True)
class Scene:
    """Inputs of one or several streams, reproducible row by row from the streams' numbers."""

    model: DiT
    streams: tuple[int, ...] = (0,)

    @property
    def context_latents(self) -> Tensor:
        return torch.stack([random(CONTEXT, CHANNELS, SIZE, SIZE, seed=100 + s) for s in self.streams])

    @property
    def context_ids(self) -> Tensor:
        """Streams stand at different points of their stories: 0 0 1 1 2 2, then 3 3 4 4 5 5, ..."""
        return torch.stack([torch.arange(CONTEXT) // 2 + 3 * s for s in self.streams])

    @property
    def own_ids(self) -> Tensor:
        return self.context_ids[:, -1] + 1

    def caption_states(self, name: int) -> Tensor:
        config = self.model.config
        return torch.stack([random(config.text_len, config.text_dim, seed=1000 * name + s) for s in self.streams])

    def captions(self, name: int) -> CaptionKV:
        """Caption number `name` of every stream, one a row."""
        return self.model.encode_captions(self.caption_states(name))

    def context(self) -> Context:
        """Every remembered frame under the caption of its own shot (numbered 50, 51, 52)."""
        rows = [[row] * 2 for row in (50, 51, 52)]
        states = torch.stack([self.caption_states(name) for pair in rows for name in pair], dim=1)
        captions = self.model.encode_captions(states.flatten(0, 1))
        return Context(self.context_latents, self.context_ids, self.own_ids, captions)

    def noise(self, chunk: int, take: int = 0) -> NoiseSource:
        def draw(step: int) -> Tensor:
            seeds = [((take * 100 + s) * 100 + chunk) * 10 + step for s in self.streams]
            return torch.stack([random(CHUNK, CHANNELS, SIZE, SIZE, seed=seed) for seed in seeds])

        return draw

    def rollout(self, config: RolloutConfig = CONFIG) -> Rollout:
        """A fresh rollout with an open shot."""
        rollout = Rollout(self.model, config, latent_height=SIZE, latent_width=SIZE, batch=len(self.streams))
        with torch.no_grad():
            rollout.open_shot(self.context())
        return rollout

    def next_chunk(self, rollout: Rollout, caption: int = 1, take: int = 0, **options: object) -> DenoisedChunk:
        with torch.no_grad():
            captions = self.captions(caption)
        return rollout.next_chunk(captions, self.noise(rollout.chunk_index, take), **options)  # type: ignore[arg-type]

    def shot(self, rollout: Rollout, num_chunks: int, take: int = 0, **options: object) -> list[DenoisedChunk]:
        """A shot that is steered to another caption at its second chunk."""
        return [self.next_chunk(rollout, caption_of(i), take, **options) for i in range(num_chunks)]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def caption_of(chunk: int) -> int:
    return 1 if chunk == 0 else 2


@pytest.fixture
def scene(tiny_dit: DiT) -> Scene:
    return Scene(tiny_dit)


def masked_form(
    scene: Scene, chunks: list[DenoisedChunk], *, detached: bool = False, let_go_at: int | None = None
) -> Tensor:
    """Clean predictions of all chunks at once from [context | clean history | noisy chunks], by masking alone.

    From chunk `let_go_at` on nothing of the shot is visible that lies before the chunk before that.
    """
    model, count = scene.model, len(chunks)
    batch, history = len(scene.streams), count - 1
    latents = torch.cat([scene.context_latents, *[c.clean for c in chunks[:-1]], *[c.noisy for c in chunks]], dim=1)
    timestep = CONFIG.timesteps[chunks[0].step]
    timesteps = torch.tensor([0.0] * (CONTEXT + history * CHUNK) + [timestep] * count * CHUNK).expand(batch, -1)
    shot = torch.arange(CONTEXT, CONTEXT + count * CHUNK)
    positions = torch.cat([torch.arange(CONTEXT), shot[: history * CHUNK], shot]).expand(batch, -1)
    shot_ids = torch.cat([scene.context_ids, scene.own_ids[:, None].expand(-1, latents.shape[1] - CONTEXT)], dim=1)
    before = range(count + 1) if let_go_at is None else range(let_go_at)
    clean = [(0, *[j for j in range(1, i + 1) if i - 1 in before or j >= before.stop]) for i in range(count)]
    noisy = [(0, *[j for j in range(1, i + 1) if i in before or j >= before.stop], count + i) for i in range(count)]
    attention = SegmentAttention(
        sizes=(CONTEXT, *[CHUNK] * (history + count)),
        tokens_per_frame=TOKENS,
        visible=(*clean, *noisy),
        detached=frozenset(range(count) if detached else ()),
    )
    names = [50, 50, 51, 51, 52, 52]
    names += [caption_of(i) for i in (*range(history), *range(count)) for _ in range(CHUNK)]
    states = torch.cat([scene.caption_states(name) for name in (50, 51, 52, 1, 2)])
    rows = torch.tensor([[(50, 51, 52, 1, 2).index(n) * batch + row for n in names] for row in range(batch)])
    output = model(
        latents,
        timesteps,
        positions_BF=positions,
        shot_ids_BF=shot_ids,
        captions=model.encode_captions(states),
        caption_ids_BF=rows,
        attention=attention,
    )
    start = CONTEXT + history * CHUNK
    sigma = timesteps[:, start:] / 1000
    return velocity_to_clean(latents[:, start:], output[:, start:], sigma)


@pytest.mark.parametrize("exit_step", [0, 1, 2])
@pytest.mark.parametrize("streams", [(0,), (0, 4)])
def test_streaming_equals_the_masked_form(tiny_dit: DiT, streams: tuple[int, ...], exit_step: int) -> None:
    scene = Scene(tiny_dit, streams)
    chunks = scene.shot(scene.rollout(), 4, exit_step=exit_step)
    streamed = torch.cat([chunk.clean for chunk in chunks], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(streamed, masked_form(scene, chunks), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("let_go_at", [1, 2, 3])
def test_streaming_equals_the_masked_form_where_the_past_is_let_go(tiny_dit: DiT, let_go_at: int) -> None:
    scene = Scene(tiny_dit, (0, 4))
    rollout, chunks = scene.rollout(), list[DenoisedChunk]()
    for chunk in range(5):
        keep = CHUNK if chunk == let_go_at else None
        chunks.append(scene.next_chunk(rollout, caption_of(chunk), keep_frames=keep))
    streamed = torch.cat([chunk.clean for chunk in chunks], dim=1)
    with torch.no_grad():
        masked = masked_form(scene, chunks, let_go_at=let_go_at)
    torch.testing.assert_close(streamed, masked, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("since", [1, 2, 5, 9, 20, 21, 29])
@pytest.mark.parametrize("sink_chunks", [0, 1, 2])
def test_what_is_read_is_what_the_slab_holds_of_the_frames_not_let_go(since: int, sink_chunks: int) -> None:
    config = replace(SLAB, sink_frames=sink_chunks * CHUNK)
    held: dict[int, int] = dict.fromkeys(range(CONTEXT), 10000)
    for chunk in range(3 * WINDOW):
        held |= {config.chunk_slot(chunk) + i: chunk * CHUNK + i for i in range(CHUNK)}
        read = [slot for part in config.readable(chunk, since) for slot in range(part.start, part.stop)]
        assert read == sorted(slot for slot, frame in held.items() if frame >= since)
        assert [slice(0, len(held))] == list(config.readable(chunk)), "all of it, if nothing was let go"


@pytest.mark.parametrize("keep_frames", [1, 2])
def test_frames_that_were_let_go_have_no_effect_and_those_kept_do(scene: Scene, keep_frames: int) -> None:
    def after(changed: slice) -> Tensor:
        rollout = scene.rollout()
        scene.shot(rollout, 3)
        rollout.commit()
        rollout.slab.values[..., rollout.slab.tokens(changed.start) : rollout.slab.tokens(changed.stop), :] += 1.0
        return scene.next_chunk(rollout, caption=5, keep_frames=keep_frames).clean

    kept = CONTEXT + 3 * CHUNK - keep_frames
    usual = after(slice(0, 0))
    assert torch.equal(after(slice(CONTEXT, kept)), usual)
    assert not torch.equal(after(slice(kept, kept + 1)), usual)
    assert not torch.equal(after(slice(0, CONTEXT)), usual), "what is remembered of earlier shots still counts"


@pytest.mark.parametrize("num_chunks", [0, 2])
def test_letting_go_of_nothing_changes_nothing(scene: Scene, num_chunks: int) -> None:
    usual, told = scene.rollout(), scene.rollout()
    for rollout in (usual, told):
        scene.shot(rollout, num_chunks)
    wanted = scene.next_chunk(usual).clean
    assert torch.equal(scene.next_chunk(told, keep_frames=num_chunks * CHUNK).clean, wanted)


def test_the_next_shot_reads_all_of_itself_again(scene: Scene) -> None:
    fresh, used = scene.rollout(), scene.rollout()
    scene.shot(used, 2)
    scene.next_chunk(used, keep_frames=1)
    used.open_shot(scene.context())
    for again, first in zip(scene.shot(used, 3), scene.shot(fresh, 3), strict=True):
        assert torch.equal(again.clean, first.clean)


@pytest.mark.parametrize("when", ["before a pass", "afterwards"])
def test_a_chunk_given_up_lets_go_of_nothing(scene: Scene, when: str) -> None:
    rollout, twin = scene.rollout(), scene.rollout()
    for one in (rollout, twin):
        scene.shot(one, 2)
    if when == "afterwards":
        scene.next_chunk(rollout, caption=5, keep_frames=1)
        rollout.take_back()
    else:
        with pytest.raises(ChunkAbandoned):
            scene.next_chunk(rollout, caption=5, keep_frames=1, keep_going=iter((True, False)).__next__)
    for again, wanted in zip(scene.shot(rollout, 2), scene.shot(twin, 2), strict=True):
        assert torch.equal(again.clean, wanted.clean)


def test_the_future_never_changes_the_past(scene: Scene) -> None:
    rollout = scene.rollout()
    scene.shot(rollout, 3)
    rollout.commit()
    past = slice(0, rollout.slab.tokens(SLAB.chunk_slot(3)))
    before = rollout.slab.keys[..., past, :].clone(), rollout.slab.values[..., past, :].clone()
    scene.next_chunk(rollout, caption=7, take=9)
    scene.next_chunk(rollout, caption=8, take=9)
    assert torch.equal(rollout.slab.keys[..., past, :], before[0])
    assert torch.equal(rollout.slab.values[..., past, :], before[1])


def test_steering_changes_the_next_chunk_and_none_before(scene: Scene) -> None:
    steered, straight = scene.rollout(), scene.rollout()
    for caption in (1, 1, 5):
        a, b = scene.next_chunk(steered, caption), scene.next_chunk(straight, 1)
        assert torch.equal(a.clean, b.clean) == (caption == 1)


def test_streams_in_a_batch_equal_streams_alone(tiny_dit: DiT) -> None:
    streams = (0, 1, 5)
    together = Scene(tiny_dit, streams)
    # Past the window, so that turning the anchors is shown to be per row as well.
    batched = together.shot(together.rollout(), WINDOW + 2)
    for row, stream in enumerate(streams):
        alone = Scene(tiny_dit, (stream,))
        for chunk, single in zip(batched, alone.shot(alone.rollout(), WINDOW + 2), strict=True):
            torch.testing.assert_close(chunk.clean[row : row + 1], single.clean, rtol=0, atol=TOLERANCE)


def test_a_retake_gives_the_same_bits(scene: Scene) -> None:
    fresh, used, length = scene.rollout(), scene.rollout(), WINDOW + 2
    original = scene.shot(fresh, length)
    # Another long take before it, whose anchors must be forgotten.
    scene.shot(used, length, take=1)
    for rollout in (fresh, used):
        rollout.open_shot(scene.context())
        for again, first in zip(scene.shot(rollout, length), original, strict=True):
            assert torch.equal(again.clean, first.clean)


def test_another_take_differs(scene: Scene) -> None:
    first, second = scene.shot(scene.rollout(), 1), scene.shot(scene.rollout(), 1, take=1)
    assert not torch.equal(first[0].clean, second[0].clean)


def test_committing_early_changes_nothing(scene: Scene) -> None:
    lazy, eager = scene.rollout(), scene.rollout()
    for chunk in range(WINDOW + 2):
        a, b = scene.next_chunk(lazy, caption_of(chunk)), scene.next_chunk(eager, caption_of(chunk))
        eager.commit()
        assert torch.equal(a.clean, b.clean)


def gradients(model: DiT) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def replayed_gradients(
    scene: Scene, rollout: Rollout, chunks: list[DenoisedChunk], upstream: Tensor
) -> dict[str, Tensor]:
    model, parts = scene.model, upstream.split(CHUNK, dim=1)
    for i, (chunk, gradient) in enumerate(zip(chunks, parts, strict=True)):
        time = model.embed_time(torch.tensor([[CONFIG.timesteps[chunk.step]]]))
        clean = rollout.replay(i, chunk.noisy, chunk.step, scene.captions(caption_of(i)), time)
        torch.testing.assert_close(clean, chunk.clean, rtol=0, atol=TOLERANCE)
        clean.backward(gradient)
    return gradients(model)


@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_two_phase_gradient_equals_the_masked_form_with_detached_history(tiny_dit: DiT, exit_step: int) -> None:
    scene = Scene(tiny_dit, (0, 4))
    rollout = scene.rollout()
    chunks = scene.shot(rollout, WINDOW, exit_step=exit_step)
    upstream = random(2, WINDOW * CHUNK, CHANNELS, SIZE, SIZE, seed=77)
    slab = rollout.slab.keys.clone(), rollout.slab.values.clone()
    two_phase = replayed_gradients(scene, rollout, chunks, upstream)
    assert torch.equal(rollout.slab.keys, slab[0])
    assert torch.equal(rollout.slab.values, slab[1])
    masked_form(scene, chunks, detached=True).backward(upstream)
    expected = gradients(tiny_dit)
    assert two_phase.keys() == expected.keys() == dict(tiny_dit.named_parameters()).keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert (two_phase[name] - gradient).abs().max().item() <= TOLERANCE * max(1.0, scale), name


def test_the_gradient_depends_on_cutting_history(scene: Scene) -> None:
    chunks = scene.shot(scene.rollout(), 3, exit_step=1)
    upstream = random(1, 3 * CHUNK, CHANNELS, SIZE, SIZE, seed=77)
    found = []
    for detached in (True, False):
        masked_form(scene, chunks, detached=detached).backward(upstream)
        found.append(gradients(scene.model)["blocks.0.self_attn.v.weight"])
    assert (found[0] - found[1]).abs().max() > 1e-2


class PinnedTwin:
    """The definition of a long shot: keys are kept as they are and turned to pinned positions whenever they are read.

    Whatever is read lies at positions 0, 1, 2, ...: context, then the shot's sink, then its newest chunks.
    """

    def __init__(self, scene: Scene, config: RolloutConfig) -> None:
        self.scene, self.config = scene, config
        self.memory: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.reads: list[int] = []
        context = scene.context()
        self._forward(context.latents, 0.0, context.captions, [-1])

    def next_chunk(self, chunk: int) -> Tensor:
        captions, noise = self.scene.captions(caption_of(chunk)), self.scene.noise(chunk)
        reads = [-1, *self._window(chunk)]
        clean = torch.zeros(())
        for step, timestep in enumerate(self.config.timesteps):
            sigma = timestep / 1000
            x_t = noise(0) if step == 0 else (1 - sigma) * clean + sigma * noise(step)
            clean = x_t - sigma * self._forward(x_t, timestep, captions, reads)
        self._forward(clean, 0.0, captions, reads)
        return clean

    def _window(self, chunk: int) -> list[int]:
        slab = self.config.slab
        if chunk < slab.window_chunks:
            return list(range(chunk + 1))
        sink = slab.sink_frames // CHUNK
        return [*range(sink), *range(chunk + 1 - (slab.window_chunks - sink), chunk + 1)]

    def _forward(self, x: Tensor, timestep: float, captions: CaptionKV, reads: list[int]) -> Tensor:
        """The last of `reads` is what x is: -1 the context, else a chunk."""
        self.reads = reads
        model = self.scene.model
        tokens = torch.zeros(1, x.shape[1] * TOKENS, 1, model.config.head_dim // 2)
        unturned = Rotary(tokens + 1, tokens)
        time = model.embed_time(torch.tensor([[timestep]]))
        output = model.forward_tokens(x, time, unturned, captions, self)
        assert output is not None
        return output

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.store(layer, k, v)
        keys = torch.cat([self.memory[layer, part][0] for part in self.reads], dim=2).transpose(1, 2)
        values = torch.cat([self.memory[layer, part][1] for part in self.reads], dim=2)
        rotary = self._rotary(keys.shape[1] // TOKENS)
        own = rotary.tokens(keys.shape[1] - q.shape[2], keys.shape[1])
        turned_q, turned_k = rotate(q.transpose(1, 2), own), rotate(keys, rotary)
        return attend_plain(turned_q.transpose(1, 2), turned_k.transpose(1, 2), values)

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.memory[layer, self.reads[-1]] = (k, v)

    def _rotary(self, frames: int) -> Rotary:
        ids = torch.cat([self.scene.context_ids, self.scene.own_ids[:, None].expand(-1, frames - CONTEXT)], dim=1)
        return self.scene.model.rotary(torch.arange(frames)[None], ids, SIZE, SIZE)


@pytest.mark.parametrize("sink_chunks", [1, 0, 2])
@torch.no_grad()
def test_a_shot_three_windows_long_equals_positions_pinned_inside_the_window(tiny_dit: DiT, sink_chunks: int) -> None:
    config = replace(CONFIG, slab=replace(SLAB, sink_frames=sink_chunks * CHUNK))
    scene = Scene(tiny_dit, (2,))
    rollout, twin = scene.rollout(config), PinnedTwin(scene, config)
    for chunk in range(3 * WINDOW):
        made = scene.next_chunk(rollout, caption_of(chunk))
        torch.testing.assert_close(made.clean, twin.next_chunk(chunk), rtol=0, atol=TOLERANCE)


def test_positions_of_a_long_shot_never_grow_in_effect(scene: Scene) -> None:
    assert [SLAB.anchor_shift(chunk) for chunk in (0, WINDOW - 1, WINDOW, WINDOW + 1)] == [0, 0, CHUNK, 2 * CHUNK]
    slots = [SLAB.chunk_slot(chunk) for chunk in range(3 * WINDOW)]
    assert slots[:WINDOW] == [CONTEXT + CHUNK * i for i in range(WINDOW)]
    assert set(slots[WINDOW:]) == set(slots[1:WINDOW]), "everything but the sink is overwritten, in turn"
    assert {slots.count(slot) for slot in slots[WINDOW:]} <= {3, 4}


def live_tensor_bytes() -> int:
    gc.collect()
    storages = [obj.untyped_storage() for obj in gc.get_objects() if type(obj) is Tensor]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_memory_does_not_grow(scene: Scene) -> None:
    rollout = scene.rollout()
    before = rollout.slab.keys.data_ptr(), rollout.slab.values.data_ptr()
    scene.shot(rollout, WINDOW + 2)
    steady = live_tensor_bytes()
    for _ in range(WINDOW):
        scene.next_chunk(rollout)
    assert live_tensor_bytes() == steady
    rollout.open_shot(scene.context())
    scene.shot(rollout, WINDOW + 2, take=1)
    assert live_tensor_bytes() == steady
    assert (rollout.slab.keys.data_ptr(), rollout.slab.values.data_ptr()) == before


def give_up_after(passes: int) -> Callable[[], bool]:
    answers = iter([True] * passes + [False])
    return lambda: next(answers)


@pytest.mark.parametrize("passes", [0, 1, 2])
@pytest.mark.parametrize("chunk", [0, 1, WINDOW, WINDOW + 2])
def test_an_abandoned_chunk_leaves_no_trace(scene: Scene, chunk: int, passes: int) -> None:
    undisturbed, disturbed = scene.rollout(), scene.rollout()
    scene.shot(undisturbed, chunk)
    scene.shot(disturbed, chunk)
    for _ in range(2):
        with pytest.raises(ChunkAbandoned, match=f"chunk {chunk} was abandoned before pass {passes}"):
            scene.next_chunk(disturbed, caption=9, take=5, keep_going=give_up_after(passes))
        assert disturbed.chunk_index == chunk
    for _ in range(2):
        assert torch.equal(scene.next_chunk(disturbed).clean, scene.next_chunk(undisturbed).clean)


@pytest.mark.parametrize("num_chunks", [1, 3, WINDOW, WINDOW + 3])
def test_restored_chunks_continue_as_generated_ones(scene: Scene, num_chunks: int) -> None:
    generated, restored = scene.rollout(), scene.rollout()
    for i, chunk in enumerate(scene.shot(generated, num_chunks)):
        restored.restore_chunk(chunk.clean, scene.captions(caption_of(i)))
    assert restored.chunk_index == num_chunks
    for _ in range(2):
        assert torch.equal(scene.next_chunk(restored).clean, scene.next_chunk(generated).clean)


def test_a_storys_first_shot_starts_from_zeros_and_counts_as_shot_one(scene: Scene) -> None:
    context = scene.rollout().first_shot_context(scene.captions(1))
    assert not context.latents.any()
    assert context.shot_ids.tolist() == [[0] * CONTEXT]
    assert context.own_shot_id.tolist() == [1]


def test_memory_and_shot_number_reach_the_pixels(scene: Scene) -> None:
    usual = scene.next_chunk(scene.rollout()).clean
    context = scene.context()
    for changed in (
        context._replace(latents=context.latents + 1),
        context._replace(own_shot_id=context.own_shot_id + 3),
        context._replace(shot_ids=context.shot_ids - 3),
    ):
        rollout = scene.rollout()
        rollout.open_shot(changed)
        assert (scene.next_chunk(rollout).clean - usual).abs().max() > 1e-3


def test_new_weights_are_seen_after_refreshing_time(scene: Scene) -> None:
    rollout = scene.rollout()
    with torch.no_grad():
        scene.model.time_projection[1].bias += 0.1
    rollout.refresh_time()
    rollout.open_shot(scene.context())
    assert torch.equal(scene.next_chunk(rollout).clean, scene.next_chunk(scene.rollout()).clean)


def test_context_of_another_length(scene: Scene) -> None:
    rollout, context = scene.rollout(), scene.context()
    with pytest.raises(ValueError, match=r"context latents must be \[1, 6, 4, 4, 4\], got \[1, 5, 4, 4, 4\]"):
        rollout.open_shot(context._replace(latents=context.latents[:, 1:]))


@pytest.mark.parametrize("timesteps", [(), (500.0, 900.0), (1001.0, 500.0), (1000.0, 0.0)])
def test_impossible_steps(timesteps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="timesteps must"):
        RolloutConfig(timesteps=timesteps)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"window_frames": 20}, "whole chunks of 3 frames"),
        ({"sink_frames": 2}, "whole chunks of 3 frames"),
        ({"window_frames": 6, "sink_frames": 6}, "leaves no room beside sink_frames=6"),
    ],
)
def test_impossible_slab(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlabConfig(**sizes)


def test_an_opening_embedding_changes_a_shot_only_once_it_is_learnt(tiny_config: DiTConfig, tiny_dit: DiT) -> None:
    marked = DiT(replace(tiny_config, opening_embedding=True))
    marked.load_state_dict(tiny_dit.state_dict(), strict=False)
    assert marked.opening is not None

    def first_two(model: DiT) -> list[Tensor]:
        rollout = Rollout(model, RolloutConfig(timesteps=(1000.0, 500.0)), latent_height=4, latent_width=4)
        captions = model.encode_captions(torch.zeros(1, tiny_config.text_len, tiny_config.text_dim))
        rollout.open_shot(rollout.first_shot_context(captions))
        noise = [torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        return [rollout.next_chunk(captions, lambda step, c=c: noise[2 * c + step]).clean for c in range(2)]

    plain = first_two(tiny_dit)
    assert all(torch.equal(a, b) for a, b in zip(first_two(marked), plain, strict=True))
    torch.nn.init.ones_(marked.opening)
    assert not any(torch.equal(a, b) for a, b in zip(first_two(marked), plain, strict=True))
