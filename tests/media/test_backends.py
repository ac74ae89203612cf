"""Video files in: the backends agree, and say so when they do not."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch
from media_files import brightness, encode

from pixelrefer_fast.media import open_media


def test_backends(short_video):
    with pytest.raises(ValueError, match=r"^backend: expected one of pyav, torchcodec, got 'decord'"):
        open_media(short_video, backend="decord")
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(ImportError, match="torchcodec"):
            open_media(short_video, backend="torchcodec")
        return
    ours = open_media(short_video)
    for source in (short_video, short_video.read_bytes()):
        theirs = open_media(source, backend="torchcodec")
        assert theirs.times == ours.times
        for a, b in zip(theirs.read([47, 0, 7, 7]), ours.read([47, 0, 7, 7]), strict=True):
            assert np.abs(a.astype(int) - b).max() <= 3


class FakeDecoder:
    """torchcodec's VideoDecoder as far as it is used, for the machines without it; its seeking can be off."""

    off = 0

    def __init__(self, source, *, dimension_order, seek_mode):
        assert (dimension_order, seek_mode) == ("NHWC", "exact")
        with av.open(source) as container:
            stream = container.streams.video[0]
            self.frames = [
                SimpleNamespace(
                    data=torch.from_numpy(frame.to_ndarray(format="rgb24")),
                    pts_seconds=float(frame.pts * stream.time_base),
                )
                for frame in container.decode(stream)
            ]

    def __len__(self):
        return len(self.frames)

    def get_frame_at(self, number):
        return self.frames[number + self.off]


def test_torchcodec_gives_the_frame_asked_for_or_an_error(tmp_path, monkeypatch):
    path = encode(tmp_path / "late.ts", pts=[5000 + 40 * number for number in range(48)])
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=FakeDecoder))
    video = open_media(path, backend="torchcodec")
    assert [brightness(frame) for frame in video.read([40, 3])] == [40, 3]
    monkeypatch.setattr(FakeDecoder, "off", 1)
    with pytest.raises(ValueError, match=r"frame 3: expected the frame at 0\.12.* s, torchcodec returned .* 0\.16.* s"):
        list(video.read([3]))
