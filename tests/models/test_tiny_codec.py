"""What every codec promises, held by our own tiny codec and by TAEHV with few weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shotstream.models.codec import to_uint8
from shotstream.models.taehv import Taehv, TaehvConfig
from shotstream.models.tiny_codec import TinyCodec, TinyCodecConfig

SMALL = TinyCodecConfig(
    latent_channels=4,
    encoder_widths=(16, 16, 32),
    encoder_blocks=(1, 1, 1),
    decoder_widths=(32, 32, 16),
    decoder_blocks=(1, 2, 1),
    latent_mean=(0.1, -0.2, 0.3, 0.0),
    latent_sd=(0.5, 1.0, 2.0, 1.5),
)
PARTS = [(1,) * 5, (5,), (1, 4), (2, 3), (3, 1, 1), (4, 1)]
Halves = TinyCodec | Taehv


def awake(codec: Halves) -> Halves:
    """Random weights everywhere: blocks that start as the identity would make the promises trivial."""
    generator = torch.Generator().manual_seed(3)
    for parameter in codec.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        nn.init.normal_(parameter, std=scale, generator=generator)
    return codec.requires_grad_(False).eval()


@pytest.fixture
def codec() -> TinyCodec:
    codec = awake(TinyCodec(SMALL))
    assert isinstance(codec, TinyCodec)
    return codec


@pytest.fixture
def taehv() -> Taehv:
    codec = awake(Taehv(TaehvConfig(latent_channels=4, encoder_width=8, decoder_widths=(16, 12, 8, 8))))
    assert isinstance(codec, Taehv)
    return codec


def clip(num_frames: int, *, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, num_frames, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def latents_of(codec: Halves, num_frames: int = 5, *, batch: int = 1) -> Tensor:
    cells = (32 // codec.spatial_stride, 48 // codec.spatial_stride)
    return torch.randn(batch, num_frames, codec.latent_channels, *cells, generator=torch.Generator().manual_seed(1))


def decode_in_parts(codec: Halves, latents: Tensor, parts: Sequence[int]) -> Tensor:
    state = codec.new_decoder_state(latents.shape[0])
    return torch.cat([codec.decode_chunk(part, state) for part in latents.split(list(parts), dim=1)], dim=1)


@pytest.mark.parametrize("parts", PARTS)
def test_streaming_decode_equals_one_shot(codec: TinyCodec, parts: tuple[int, ...]) -> None:
    latents = latents_of(codec)
    whole, state = codec.decode(latents), codec.new_decoder_state()
    streamed = torch.cat([codec.decode_raw(part, state) for part in latents.split(list(parts), dim=1)], dim=1)
    assert whole.shape == (1, 17, 3, 32, 48)
    torch.testing.assert_close(streamed.clamp(0, 1), whole, atol=1e-5, rtol=0)
    levels = decode_in_parts(codec, latents, parts).int() - to_uint8(whole).int()
    assert levels.abs().max() <= 1


@pytest.mark.parametrize("parts", PARTS)
def test_streaming_decode_of_taehv_equals_one_shot(taehv: Taehv, parts: tuple[int, ...]) -> None:
    latents = latents_of(taehv)
    whole = taehv.decode(latents)
    assert whole.shape == (1, 17, 3, 32, 48)
    levels = decode_in_parts(taehv, latents, parts).int() - to_uint8(whole).int()
    assert levels.abs().max() <= 1


@pytest.fixture(scope="module")
def wide() -> tuple[TinyCodec, TinyCodec]:
    """A codec as wide as fast convolutions want it, plain and prepared for serving."""
    config = replace(SMALL, encoder_widths=(16, 16, 128), decoder_widths=(128, 128, 16))
    plain, fast = awake(TinyCodec(config)), awake(TinyCodec(config))
    assert isinstance(plain, TinyCodec)
    assert isinstance(fast, TinyCodec)
    return plain, fast.prepare_for_serving()


@pytest.mark.parametrize(("height", "width"), [(64, 128), (32, 48)])
def test_what_is_prepared_for_serving_equals_the_plain_codec(
    wide: tuple[TinyCodec, TinyCodec], height: int, width: int
) -> None:
    """Also where pictures do not split into the squares of the fast convolutions, as 2x3 cells do not."""
    plain, fast = wide
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 3, 4, height // 16, width // 16, generator=generator)
    pixels = torch.rand(1, 5, 3, height, width, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(fast.decode(latents), plain.decode(latents), atol=1e-5, rtol=0)
        torch.testing.assert_close(fast.encode(pixels), plain.encode(pixels), atol=1e-5, rtol=0)


@torch.no_grad()
def test_streaming_decode_equals_one_shot_in_a_codec_that_is_prepared_for_serving(
    wide: tuple[TinyCodec, TinyCodec],
) -> None:
    _, fast = wide
    latents = torch.randn(1, 5, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    whole, state = fast.decode(latents), fast.new_decoder_state()
    streamed = torch.cat([fast.decode_raw(part, state) for part in latents.split([2, 3], dim=1)], dim=1)
    torch.testing.assert_close(streamed.clamp(0, 1), whole, atol=1e-5, rtol=0)
    assert (decode_in_parts(fast, latents, (1, 4)).int() - to_uint8(whole).int()).abs().max() <= 1


def test_a_codec_that_is_prepared_for_serving_gives_the_plain_gradient(wide: tuple[TinyCodec, TinyCodec]) -> None:
    plain, fast = wide
    latents = torch.randn(1, 2, 4, 4, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    gradients = [torch.autograd.grad(codec.decode(latents).sum(), latents)[0] for codec in (plain, fast)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("parts", [(1, 4, 4, 4, 4), (5, 12), (9, 8), (17,)])
def test_streaming_encode_equals_one_shot(codec: TinyCodec, parts: tuple[int, ...]) -> None:
    pixels, state = clip(17), codec.new_encoder_state()
    streamed = torch.cat([codec.encode_chunk(part, state) for part in pixels.split(list(parts), dim=1)], dim=1)
    torch.testing.assert_close(streamed, codec.encode(pixels), atol=1e-5, rtol=0)


def test_streaming_encode_of_taehv_equals_one_shot_of_the_padded_clip(taehv: Taehv) -> None:
    pixels, state = clip(9), taehv.new_encoder_state()
    padded = torch.cat([pixels, pixels[:, -1:].expand(-1, 3, -1, -1, -1)], dim=1)
    streamed = torch.cat([taehv.encode_chunk(part, state) for part in padded.split([4, 8], dim=1)], dim=1)
    torch.testing.assert_close(streamed, taehv.encode(pixels), atol=1e-5, rtol=0)


def test_a_lone_frame_is_the_first_latent_of_any_clip_it_begins(codec: TinyCodec) -> None:
    frames = to_uint8(clip(9))
    alone = codec.encode_frames(frames[:, :1])
    for length in (1, 5, 9):
        pixels = frames[:, :length].movedim(-1, 2).float() / 255
        torch.testing.assert_close(codec.encode(pixels)[:, :1], alone, atol=1e-5, rtol=0)


def test_front_padding_is_three_copies_of_the_first_frame(codec: TinyCodec) -> None:
    """The first latent of a clip is also what a stream of four equal frames, and nothing else, would pool to."""
    pixels = clip(1)
    still = codec.encode(pixels.expand(-1, 5, -1, -1, -1))
    torch.testing.assert_close(still[:, 1:], still[:, :1], atol=1e-5, rtol=0)


def test_pictures_are_encoded_each_alone(codec: TinyCodec) -> None:
    frames = to_uint8(clip(6, batch=2))
    together = codec.encode_frames(frames)
    assert together.shape == (2, 6, 4, 2, 3)
    torch.testing.assert_close(together[1, 4], codec.encode_frames(frames[1:, 4:5])[0, 0], atol=1e-5, rtol=0)


def test_pictures_for_eyes_carry_no_gradient(codec: TinyCodec) -> None:
    """Whoever keeps their latents would keep everything that they were computed from."""
    latents = codec.requires_grad_(True).encode_frames(torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8))
    assert not latents.requires_grad
    assert codec.encode(torch.zeros(1, 1, 3, 32, 32)).requires_grad


def test_the_future_never_changes_the_past(codec: TinyCodec, taehv: Taehv) -> None:
    one, other = clip(13), clip(13)
    other[:, 9:] = 1 - other[:, 9:]
    torch.testing.assert_close(codec.encode(one)[:, :3], codec.encode(other)[:, :3], atol=1e-5, rtol=0)
    assert not torch.allclose(codec.encode(one)[:, 3], codec.encode(other)[:, 3])
    for each in (codec, taehv):
        latents = latents_of(each)
        changed = latents.clone()
        changed[:, 3:] += 1
        before, after = each.decode(latents), each.decode(changed)
        torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-5, rtol=0)
        assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_the_past_is_remembered(codec: TinyCodec) -> None:
    latents = latents_of(codec)
    assert not torch.allclose(codec.decode(latents)[:, 1:5], codec.decode(latents[:, 1:])[:, :4], atol=1e-3)
    pixels = clip(5)
    changed = torch.cat([1 - pixels[:, :1], pixels[:, 1:]], dim=1)
    assert not torch.allclose(codec.encode(pixels)[:, 1], codec.encode(changed)[:, 1], atol=1e-3)


def test_clips_in_a_batch_equal_clips_alone(codec: TinyCodec, taehv: Taehv) -> None:
    pixels = clip(5, batch=3)
    for each in (codec, taehv):
        latents = latents_of(each, batch=3)
        alone = torch.cat([each.decode(latent) for latent in latents.split(1)])
        torch.testing.assert_close(each.decode(latents), alone, atol=1e-5, rtol=0)
        alone = torch.cat([each.encode(picture) for picture in pixels.split(1)])
        torch.testing.assert_close(each.encode(pixels), alone, atol=1e-5, rtol=0)


def test_a_cloned_state_goes_its_own_way(codec: TinyCodec, taehv: Taehv) -> None:
    for each in (codec, taehv):
        first, second, third = latents_of(each, 3).split(1, dim=1)
        state = each.new_decoder_state()
        each.decode_chunk(first, state)
        branch = state.clone()
        expected = each.decode_chunk(second, state)
        each.decode_chunk(third, state)
        assert torch.equal(each.decode_chunk(second, branch), expected)


@pytest.mark.parametrize("calls", range(5))
def test_decoding_that_is_given_up_leaves_the_state_as_it_was(codec: TinyCodec, calls: int) -> None:
    first, second = latents_of(codec, 4).split([1, 3], dim=1)
    state = codec.new_decoder_state()
    codec.decode_chunk(first, state)
    countdown = iter(range(calls, -1, -1))

    def between() -> None:
        if not next(countdown):
            raise KeyboardInterrupt

    expected = codec.decode_chunk(second, state.clone())
    with pytest.raises(KeyboardInterrupt):
        codec.decode_chunk(second, state, between=between)
    assert torch.equal(codec.decode_chunk(second, state), expected)


def test_a_published_codec_whose_decoding_fails_leaves_the_state_as_it_was(taehv: Taehv) -> None:
    first, second = latents_of(taehv, 4).split([1, 3], dim=1)
    state = taehv.new_decoder_state()
    taehv.decode_chunk(first, state)
    expected = taehv.decode_chunk(second, state.clone())

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    last = [module for module in taehv.decoder.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    hook = last.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        taehv.decode_chunk(second, state)
    hook.remove()
    assert torch.equal(taehv.decode_chunk(second, state), expected)


def test_saved_and_loaded_is_the_same_codec(codec: TinyCodec, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    codec.save(path, {"recipe": "none"})
    loaded = TinyCodec.load(path)
    assert loaded.config == SMALL
    assert torch.equal(loaded.encode(clip(5)), codec.encode(clip(5)))
    half = TinyCodec.load(path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.decode(latents_of(half, 2)).dtype == torch.float32


def test_latents_are_normalised_by_the_statistics_in_the_config(codec: TinyCodec) -> None:
    plain = TinyCodec(replace(SMALL, latent_mean=(), latent_sd=()))
    plain.load_state_dict(codec.state_dict())
    raw, sd = plain.encode(clip(5)), torch.tensor(SMALL.latent_sd).view(-1, 1, 1)
    expected = (raw - torch.tensor(SMALL.latent_mean).view(-1, 1, 1)) / sd
    torch.testing.assert_close(codec.encode(clip(5)), expected)
    torch.testing.assert_close(codec.decode(expected), plain.decode(raw))


@pytest.mark.parametrize("patch", [2, 4])
def test_stride_follows_from_the_patch(patch: int) -> None:
    codec = TinyCodec(replace(SMALL, patch=patch))
    latents = codec.encode(clip(5))
    assert latents.shape == (1, 2, 4, 32 // (4 * patch), 48 // (4 * patch))
    assert codec.decode(latents).shape == (1, 5, 3, 32, 48)


def test_wrong_shapes_are_named(codec: TinyCodec, taehv: Taehv) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        codec.encode(torch.rand(1, 1, 3, 30, 48))
    with pytest.raises(ValueError, match=r"1 \+ 4k frames, got 4"):
        codec.encode(clip(4))
    with pytest.raises(ValueError, match=r"\[B, T, 3, H, W\]"):
        codec.encode(torch.rand(1, 3, 5, 32, 48))
    with pytest.raises(ValueError, match="uint8"):
        codec.encode_frames(torch.rand(1, 1, 32, 48, 3))
    with pytest.raises(ValueError, match=r"F >= 1, 4"):
        codec.decode(torch.rand(1, 2, 16, 2, 3))
    state = codec.new_encoder_state()
    codec.encode_chunk(clip(1), state)
    with pytest.raises(ValueError, match="has begun"):
        codec.encode_chunk(clip(5), state)
    for each in (codec, taehv):
        with pytest.raises(ValueError, match="batch of 2"):
            each.decode_chunk(latents_of(each), each.new_decoder_state(2))


def test_bad_configs_and_files_are_named(codec: TinyCodec, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 values for 4 channels"):
        replace(SMALL, latent_mean=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="not a multiple of 16"):
        replace(SMALL, encoder_widths=(24, 32, 32))
    with pytest.raises(ValueError, match="newer version"):
        TinyCodecConfig.from_dict({"depth": 3})
    save_file({"weight": torch.zeros(2)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="expected a file of format"):
        TinyCodec.load(tmp_path / "other.safetensors")


def test_taehv_reads_published_names_and_larger_growing_kernels(taehv: Taehv, tmp_path: Path) -> None:
    weights = {name: weight.contiguous() for name, weight in taehv.state_dict().items()}
    assert {"encoder.4.conv.0.weight", "encoder.12.conv.weight", "decoder.22.bias"} <= weights.keys()
    grown = dict(weights)
    grown["decoder.13.conv.weight"] = torch.cat([torch.randn(24, 12, 1, 1), weights["decoder.13.conv.weight"]])
    save_file(grown, str(tmp_path / "taew2_1.safetensors"))
    loaded = Taehv.load(tmp_path / "taew2_1.safetensors")
    assert torch.equal(loaded.decode(latents_of(taehv)), taehv.decode(latents_of(taehv)))
    torch.save(weights, tmp_path / "taew2_1.pth")
    assert torch.equal(Taehv.load(tmp_path / "taew2_1.pth").encode(clip(1)), taehv.encode(clip(1)))
    del grown["decoder.22.bias"]
    with pytest.raises(ValueError, match=r"missing \['decoder.22.bias'\]"):
        Taehv.from_weights(grown)


@pytest.mark.parametrize("name", ["garbage.safetensors", "garbage.pth"])
def test_another_kind_of_file_is_no_codec(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    for load in (TinyCodec.load, Taehv.load):
        with pytest.raises(ValueError, match=f"cannot read weights from .*{name}"):
            load(tmp_path / name)


def test_taehv_of_shapes_that_no_width_explains_is_named(taehv: Taehv, tmp_path: Path) -> None:
    weights = taehv.state_dict() | {"encoder.17.weight": torch.tensor(1.0)}
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"cannot read weights from .*w\.pth"):
        Taehv.load(tmp_path / "w.pth")


def test_published_widths_have_the_published_size() -> None:
    with torch.device("meta"):
        published = Taehv()
    assert round(sum(p.numel() for p in published.parameters()) / 1e6, 1) == 11.3
