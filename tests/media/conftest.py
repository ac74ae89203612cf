"""What the tests of media share."""

from __future__ import annotations

import pytest
from media_files import encode


@pytest.fixture(scope="module")
def short_video(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("video") / "short.mp4")
