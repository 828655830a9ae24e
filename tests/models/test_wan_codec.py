"""The Wan codec's promises, with a random VAE of the official architecture and few weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="the Wan codec needs the `wan` extra")

from diffusers import AutoencoderKLWan

from shotstream.models.codec import to_uint8
from shotstream.models.wan_codec import WanCodec, convert_official_keys


@pytest.fixture(scope="module")
def codec() -> WanCodec:
    torch.manual_seed(5)
    return WanCodec(AutoencoderKLWan(base_dim=4)).requires_grad_(False).eval()


def clip(num_frames: int, *, batch: int = 1) -> Tensor:
    return torch.rand(batch, num_frames, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def latents(num_frames: int, *, batch: int = 1) -> Tensor:
    return torch.randn(batch, num_frames, 16, 2, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("parts", [(1, 1, 1, 1), (1, 3), (2, 2), (3, 1)])
def test_streaming_decode_equals_one_shot(codec: WanCodec, parts: tuple[int, ...]) -> None:
    whole, state = codec.decode(latents(4)), codec.new_decoder_state()
    streamed = torch.cat([codec.decode_raw(part, state) for part in latents(4).split(parts, dim=1)], dim=1)
    assert whole.shape == (1, 13, 3, 16, 24)
    torch.testing.assert_close(streamed.clamp(0, 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("parts", [(1, 4, 4, 4), (5, 8), (9, 4)])
def test_streaming_encode_equals_one_shot(codec: WanCodec, parts: tuple[int, ...]) -> None:
    state = codec.new_encoder_state()
    streamed = torch.cat([codec.encode_chunk(part, state) for part in clip(13).split(parts, dim=1)], dim=1)
    torch.testing.assert_close(streamed, codec.encode(clip(13)), atol=1e-5, rtol=0)


def test_it_agrees_with_diffusers_whole_clip_calls(codec: WanCodec) -> None:
    pixels_BCTHW = clip(9).transpose(1, 2) * 2 - 1
    mean = codec.vae.encode(pixels_BCTHW).latent_dist.mode().transpose(1, 2)
    expected = (mean - codec.latent_mean.view(-1, 1, 1)) / codec.latent_sd.view(-1, 1, 1)
    torch.testing.assert_close(codec.encode(clip(9)), expected, atol=1e-5, rtol=0)
    drawn = codec.vae.decode(mean.transpose(1, 2)).sample.transpose(1, 2) * 0.5 + 0.5
    torch.testing.assert_close(codec.decode(expected), drawn, atol=1e-5, rtol=0)


def test_a_lone_frame_is_the_first_latent_of_any_clip_it_begins(codec: WanCodec) -> None:
    frames = to_uint8(clip(5))
    alone = codec.encode_frames(frames[:, :1])
    torch.testing.assert_close(codec.encode(frames.movedim(-1, 2).float() / 255)[:, :1], alone, atol=1e-5, rtol=0)
    assert codec.encode_frames(frames).shape == (1, 5, 16, 2, 3)


def test_a_cloned_state_goes_its_own_way(codec: WanCodec) -> None:
    first, second, third = latents(3).split(1, dim=1)
    state = codec.new_decoder_state()
    codec.decode_chunk(first, state)
    branch = state.clone()
    expected = codec.decode_chunk(second, state)
    codec.decode_chunk(third, state)
    assert torch.equal(codec.decode_chunk(second, branch), expected)


def test_decoding_that_fails_leaves_the_state_as_it_was(codec: WanCodec) -> None:
    first, rest = latents(4).split([1, 3], dim=1)
    state, passes = codec.new_decoder_state(), iter(range(3))
    codec.decode_chunk(first, state)
    expected = codec.decode_chunk(rest, state.clone())

    def fail(*args: object) -> None:
        if next(passes) == 1:
            raise KeyboardInterrupt

    hook = codec.vae.decoder.conv_out.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        codec.decode_chunk(rest, state)
    hook.remove()
    assert torch.equal(codec.decode_chunk(rest, state), expected)


def test_clips_in_a_batch_equal_clips_alone(codec: WanCodec) -> None:
    alone = torch.cat([codec.decode(one) for one in latents(2, batch=2).split(1)])
    torch.testing.assert_close(codec.decode(latents(2, batch=2)), alone, atol=1e-5, rtol=0)


def test_a_diffusers_folder_loads(codec: WanCodec, tmp_path: Path) -> None:
    codec.vae.save_pretrained(tmp_path)
    assert torch.equal(WanCodec.load(tmp_path).decode(latents(1)), codec.decode(latents(1)))


def test_official_names_find_their_places() -> None:
    names = {
        "conv1.weight": "quant_conv.weight",
        "encoder.conv1.bias": "encoder.conv_in.bias",
        "decoder.middle.1.to_qkv.weight": "decoder.mid_block.attentions.0.to_qkv.weight",
        "decoder.head.0.gamma": "decoder.norm_out.gamma",
        "encoder.downsamples.3.shortcut.weight": "encoder.down_blocks.3.conv_shortcut.weight",
        "decoder.upsamples.7.time_conv.weight": "decoder.up_blocks.1.upsamplers.0.time_conv.weight",
        "decoder.upsamples.8.residual.6.bias": "decoder.up_blocks.2.resnets.0.conv2.bias",
    }
    assert list(convert_official_keys({name: torch.zeros(1) for name in names})) == list(names.values())


def test_wrong_input_is_named(codec: WanCodec) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        codec.encode(torch.rand(1, 1, 3, 15, 24))
    with pytest.raises(ValueError, match=r"1 \+ 4k frames"):
        codec.encode(clip(3))
    with pytest.raises(ValueError, match="not official"):
        WanCodec.from_official({"weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["vae.safetensors", "vae.pth", "folder/diffusion_pytorch_model.safetensors"])
def test_another_kind_of_file_is_no_codec(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot read weights from"):
        WanCodec.load(path.parent if path.parent != tmp_path else path)
