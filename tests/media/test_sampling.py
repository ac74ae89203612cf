"""Which frames of a video are looked at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import real_video

from pixelrefer_fast.media import open_media


def reference_sample(count, video_fps, fps, max_frames):
    """The rule as the recorded behaviour has it (mm_utils.load_video_from_ids, frame_sample), written independently."""
    uniform = (
        np.arange(count).tolist() if count <= max_frames else np.linspace(0, count - 1, max_frames, dtype=int).tolist()
    )
    if fps is None or count / video_fps >= max_frames:
        return uniform
    segment = min(video_fps // fps, count)
    return uniform if segment == 0 else np.arange(segment // 2, count, segment, dtype=int).tolist()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 3000),
    st.one_of(st.none(), st.floats(0.05, 60), st.integers(1, 60)),
    st.floats(0.1, 120),
    st.integers(1, 900),
)
def test_sampling_follows_the_reference(count, fps, video_fps, max_frames):
    video = open_media(np.broadcast_to(np.zeros((2, 2, 3), np.uint8), (count, 2, 2, 3)), fps=video_fps)
    chosen = video.sample(fps, max_frames)
    expected = reference_sample(count, video_fps, fps, max_frames)
    if len(expected) > max_frames:
        expected = reference_sample(count, video_fps, None, max_frames)
    assert chosen == expected
    assert 1 <= len(chosen) <= max_frames
    assert chosen == sorted(set(chosen))
    assert all(type(number) is int and 0 <= number < count for number in chosen)


def test_sampling_real_videos():
    assert open_media(real_video("bikes.mp4")).sample() == [12, 37, 62, 87, 112, 137, 162, 187, 212, 237]
    assert open_media(real_video("carphone_pristine.mp4")).sample() == [14, 43, 72, 101]  # floor(29.97) = 29 apart
    for options in ({"fps": 0}, {"fps": float("nan")}, {"fps": "1"}, {"max_frames": 0}, {"max_frames": 2.0}):
        with pytest.raises(ValueError, match="expected"):
            open_media(real_video("carphone_distorted.mp4")).sample(**options)
