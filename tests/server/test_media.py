"""The encoder's promises to the player: fragments stand alone, share one init segment, and give the pictures back."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from shotstream.server.media import ChunkEncoder, boxes

WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def encoder() -> ChunkEncoder:
    return ChunkEncoder(WIDTH, HEIGHT)


def moving_square(num_frames: int) -> NDArray[np.uint8]:
    frames = np.full((num_frames, HEIGHT, WIDTH, 3), (40, 90, 160), np.uint8)
    for index, frame in enumerate(frames):
        frame[16:40, 4 * index : 4 * index + 24] = (220, 180, 60)
    return frames


def decode(file: bytes) -> list[NDArray[np.uint8]]:
    with av.open(io.BytesIO(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def child(data: bytes, *path: str) -> bytes:
    """The content of a nested box."""
    start, end = 0, len(data)
    for kind in path:
        start, end = next((s + 8, e) for k, s, e in boxes(data, start, end) if k == kind)
    return data[start:end]


@pytest.mark.parametrize("num_frames", [1, 9, 12])
def test_a_fragment_alone_gives_its_pictures_back(encoder: ChunkEncoder, num_frames: int) -> None:
    frames = moving_square(num_frames)
    decoded = decode(encoder.init_segment + encoder.encode(frames))
    assert len(decoded) == num_frames
    assert np.abs(np.stack(decoded).astype(int) - frames).mean() < 4


def test_encoders_of_one_size_share_the_init_segment_and_the_bytes(encoder: ChunkEncoder) -> None:
    other, frames = ChunkEncoder(WIDTH, HEIGHT), moving_square(12)
    other.encode(frames[::-1].copy())
    assert other.init_segment == encoder.init_segment
    assert other.encode(frames) == encoder.encode(frames)


def test_a_fragment_is_one_closed_group_that_starts_at_zero(encoder: ChunkEncoder) -> None:
    fragment = encoder.encode(moving_square(12))
    assert [kind for kind, _, _ in boxes(fragment)] == ["moof", "mdat"]
    version, time = struct.unpack(">B3xQ", child(fragment, "moof", "traf", "tfdt"))
    assert (version, time) == (1, 0)
    with av.open(io.BytesIO(encoder.init_segment + fragment)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [packet.is_keyframe for packet in packets] == [True] + [False] * 11
        assert all(packet.pts == packet.dts for packet in packets), "no B-frames"
        duration = sum(packet.duration * packet.time_base for packet in packets)
    assert duration == 12 / 16


def test_the_colours_are_labelled_as_encoded(encoder: ChunkEncoder) -> None:
    with av.open(io.BytesIO(encoder.init_segment + encoder.slate)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert context.color_range == 1


def test_the_mime_type_names_the_profile_of_the_stream(encoder: ChunkEncoder) -> None:
    record = child(encoder.init_segment, "moov", "trak", "mdia", "minf", "stbl", "stsd")
    start = record.index(b"avcC") + 4
    assert encoder.mime_type == f'video/mp4; codecs="avc1.{record[start + 1 : start + 4].hex()}"'


def test_wrong_sizes_are_refused(encoder: ChunkEncoder) -> None:
    with pytest.raises(ValueError, match="even sides"):
        ChunkEncoder(97, 64)
    with pytest.raises(ValueError, match="expected uint8 frames"):
        encoder.encode(np.zeros((3, HEIGHT, WIDTH + 2, 3), np.uint8))
