"""Flash-attention 3 behind paged_attention: not installed where tests run, so a stand-in with its documented signature
takes its place, computes the right answer and keeps what it was called with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from paged_cases import exactly, paged_case

from pixelrefer_fast.ops import BackendError, paged_attention
from pixelrefer_fast.ops import _attention_libraries as libraries


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    for cached in (libraries._load, libraries._import, libraries._parameters):
        cached.cache_clear()
    yield
    for cached in (libraries._load, libraries._import, libraries._parameters):
        cached.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The stand-in is installed, and tensors of the CPU pass for those of an H100; the calls that it gets."""
    found: list[dict[str, Any]] = []

    # hopper/flash_attn_interface.py: q has a dimension of tokens, cache_seqlens are the keys that are there
    def flash_attn_with_kvcache(
        q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
        cache_batch_idx=None, cache_leftpad=None, page_table=None, softmax_scale=None, causal=False, num_splits=0,
    ):  # fmt: skip
        found.append(dict(locals()))
        assert (k, v, rotary_cos, softmax_scale) == (None,) * 4
        out = q.new_zeros(q.shape)
        share = q.shape[2] // k_cache.shape[2]
        for i, length in enumerate(cache_seqlens.tolist()):
            keys, values = (
                x[page_table[i].long()].flatten(0, 1)[:length].repeat_interleave(share, 1) for x in (k_cache, v_cache)
            )
            scores = torch.einsum("hd,shd->hs", q[i, 0], keys) * q.shape[-1] ** -0.5
            out[i, 0] = torch.einsum("hs,shd->hd", scores.softmax(-1), values)
        return out

    module = ModuleType("flash_attn_interface")
    module.flash_attn_with_kvcache = flash_attn_with_kvcache  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(libraries, "capability", lambda tensor: 9)
    return found


def test_it_is_given_what_is_in_the_cache(calls: list[dict[str, Any]]) -> None:
    case = paged_case([5, 17, 1], 8, (4, 2), 16, torch.float16, spare=1)
    out, keys, values = exactly(case, torch.float64)
    found = paged_attention(*case, backend="flash_attn_3")
    torch.testing.assert_close(found.double(), out, rtol=0, atol=4e-3)
    torch.testing.assert_close(case[3].double(), keys, rtol=0, atol=4e-3)
    torch.testing.assert_close(case[4].double(), values, rtol=0, atol=0)
    (call,) = calls
    assert call["q"].shape == (3, 1, 4, 16)
    assert call["page_table"] is case[5]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "lengths", "reason"),
    [
        (torch.float32, 16, [3], r"it computes float16 and bfloat16, not torch\.float32"),
        (torch.float16, 12, [3], "it takes head sizes that are multiples of 8 up to 256, not 12"),
        (torch.float16, 16, [], "it takes no batch without sequences or blocks"),
    ],
)
def test_declines(
    dtype: torch.dtype, head_dim: int, lengths: list[int], reason: str, calls: list[dict[str, Any]]
) -> None:
    with pytest.raises(BackendError, match=reason):
        paged_attention(*paged_case(lengths, 8, (2, 1), head_dim, dtype), backend="flash_attn_3")
    assert not calls


def test_it_is_not_installed() -> None:
    with pytest.raises(BackendError, match="flash_attn_interface is not installed"):
        paged_attention(*paged_case([3], 8, (2, 1), 16, torch.float16), backend="flash_attn_3")


def test_another_version(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=None, block_table=None): ...

    monkeypatch.setattr(sys.modules["flash_attn_interface"], "flash_attn_with_kvcache", flash_attn_with_kvcache)
    with pytest.raises(BackendError, match="flash_attn_with_kvcache has no parameter page_table in the version"):
        paged_attention(*paged_case([3], 8, (2, 1), 16, torch.float16), backend="flash_attn_3")
