"""Encoded objects that a server keeps: for so long, in so much room, for the model that made them."""

from __future__ import annotations

import pytest
import torch

from pixelrefer_fast.encoding.objects import Objects
from pixelrefer_fast.planning.request import ObjectTokens
from pixelrefer_fast.serving.encoded import EncodedObjects
from pixelrefer_fast.serving.errors import ApiError

OF_ONE = 4 * 4 * 8
"""Bytes of an object's tokens here."""


def made(count: int = 1) -> Objects:
    return Objects("lite", torch.zeros(4 * count, 8), (ObjectTokens((4,)),) * count, (), None, {})


def test_objects_are_gone_after_their_time() -> None:
    now = 10.0
    encoded = EncodedObjects(10 * OF_ONE, 5.0, lambda: now)
    objects = made()
    name = encoded.keep("lite", objects)
    now = 14.9
    assert encoded.get(name, "lite") is objects
    now = 15.0  # asking has not put it off
    with pytest.raises(ApiError, match="expected an id of /v1/encode that has not expired") as told:
        encoded.get(name, "lite")
    assert told.value.status == 404
    assert encoded.bytes == 0


def test_the_least_recently_asked_about_make_room() -> None:
    encoded = EncodedObjects(3 * OF_ONE, 5.0)
    first, second, third = (encoded.keep("lite", made()) for _ in range(3))
    encoded.get(first, "lite")
    fourth = encoded.keep("lite", made(2))
    assert encoded.bytes == 3 * OF_ONE
    for name in (second, third):
        with pytest.raises(ApiError):
            encoded.get(name, "lite")
    assert len(encoded.get(first, "lite")) == 1
    assert len(encoded.get(fourth, "lite")) == 2
    with pytest.raises(ApiError, match=f"expected at most {3 * OF_ONE} bytes of object tokens") as told:
        encoded.keep("lite", made(4))
    assert told.value.status == 413
    assert len(encoded.get(fourth, "lite")) == 2


def test_objects_are_the_models_that_made_them() -> None:
    encoded = EncodedObjects(3 * OF_ONE, 5.0)
    name = encoded.keep("lite", made())
    with pytest.raises(ApiError, match="expected ones of full, got ones of lite") as told:
        encoded.get(name, "full")
    assert told.value.status == 400
