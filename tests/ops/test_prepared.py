"""With which versions of Triton launches are prepared; how, is tested in tests/emulator/test_prepared_launches.py."""

from __future__ import annotations

import pytest

from pixelrefer_fast.kernels._prepared import KNOWN, reason_of


@pytest.mark.parametrize("version", KNOWN)
def test_known(version: str) -> None:
    assert reason_of(f"{version}.0", None) is None
    assert reason_of(f"{version}.1+git12ab", None) is None
    assert "AMD" in (reason_of(f"{version}.0", "6.4") or "")


@pytest.mark.parametrize("version", ["3.5.1", "3.60.0", "3.10.0", "4.6.0"])
def test_others_are_left_to_triton(version: str) -> None:
    assert f"triton {version} is not one of" in (reason_of(version, None) or "")
