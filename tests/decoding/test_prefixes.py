"""Prefixes that prompts share: computed once, the same answers, bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from decoding import alone, answers, drain, new_decoder, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrefer_fast.decoding import Boundary, Generation, PromptEmbeds, prefix_boundaries
from pixelrefer_fast.decoding.cache import BlockPool
from pixelrefer_fast.decoding.prefixes import PrefixCache, content
from pixelrefer_fast.decoding.prompt import Prompt
from pixelrefer_fast.encoding.objects import Objects, SceneTokens
from pixelrefer_fast.planning.request import ObjectTokens

OPTIONS = Generation(max_new_tokens=8)


def _sharing(lengths: list[int], rest: int, seed: int) -> PromptEmbeds:
    """A prompt whose prefixes of these lengths are those of every other such prompt, and whose rest is its own."""
    prefix = prompt(max(lengths, default=0), seed=99)
    boundaries = tuple(Boundary(n, bytes([n])) for n in lengths)
    return PromptEmbeds(torch.cat([prefix, prompt(rest, seed)]), boundaries)


@pytest.fixture(params=["lite", "full"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("length", [16, 31, 32, 33, 64, 90])
def test_what_was_computed_is_not_computed_again(model: Any, length: int) -> None:
    decoder = new_decoder(model)
    first, second = (_sharing([length], 10 + i, i) for i in range(2))
    assert decoder.submit(first, OPTIONS).result().cached_tokens == 0
    sequence = decoder.submit(second, OPTIONS)
    answer = sequence.result()
    assert answer.tokens == alone(model, second.embeds, OPTIONS)
    assert (answer.prompt_tokens, answer.cached_tokens) == (length + 11, length)
    counts = decoder.counts()
    assert counts["prefill_tokens"] == length + 10 + 11
    assert (counts["cached_tokens"], counts["prefix_hits"], counts["passes"]) == (length, 1, 2)
    # and once more, after others wrote behind the prefix in blocks of their own
    assert decoder.submit(first, OPTIONS).result().tokens == alone(model, first.embeds, OPTIONS)


def test_the_longest_prefix_is_taken(lite: Any) -> None:
    decoder = new_decoder(lite)
    decoder.submit(_sharing([20, 50], 5, 0), OPTIONS).result()
    short = PromptEmbeds(
        torch.cat([prompt(50, 99)[:20], prompt(40, 3)]), (Boundary(20, bytes([20])), Boundary(45, b"x"))
    )
    assert decoder.submit(_sharing([20, 50], 7, 1), OPTIONS).result().cached_tokens == 50
    answer = decoder.submit(short, OPTIONS).result()
    assert answer.cached_tokens == 20
    assert answer.tokens == alone(lite, short.embeds, OPTIONS)


def test_within_a_batch_a_prefix_is_computed_once(lite: Any) -> None:
    """One prompt goes first; all the others come with the second pass."""
    decoder = new_decoder(lite)
    prompts = [_sharing([40], 3 + i, i) for i in range(6)]
    sequences = [decoder.submit(p, OPTIONS) for p in prompts]
    assert answers(sequences) == [alone(lite, p.embeds, OPTIONS) for p in prompts]
    counts = decoder.counts()
    assert counts["passes"] == 2
    assert counts["prefill_tokens"] == 40 + sum(3 + i for i in range(6))
    assert counts["cached_tokens"] == 40 * 5


def test_prefixes_within_prefixes(lite: Any) -> None:
    """Questions about two sets of objects in one image: the image once, each set once."""
    decoder = new_decoder(lite)
    image = prompt(30, 99)
    objects = [torch.cat([image, prompt(20, 50 + i)]) for i in range(2)]
    prompts = [
        PromptEmbeds(torch.cat([objects[i % 2], prompt(4, i)]), (Boundary(30, b"image"), Boundary(50, bytes([i % 2]))))
        for i in range(6)
    ]
    sequences = [decoder.submit(p, OPTIONS) for p in prompts]
    assert answers(sequences) == [alone(lite, p.embeds, OPTIONS) for p in prompts]
    assert decoder.counts()["prefill_tokens"] == 30 + 2 * 20 + 6 * 4
    assert decoder.counts()["passes"] == 3


@given(
    asks=st.lists(
        st.tuples(st.lists(st.sampled_from([16, 20, 32, 47, 64]), max_size=3, unique=True), st.integers(1, 6)),
        min_size=1,
        max_size=10,
    ),
    slots=st.integers(1, 4),
    blocks=st.integers(6, 40),
    kept=st.integers(0, 4),
)
@settings(max_examples=12)
def test_whatever_is_shared_and_given_up(
    lite: Any, asks: list[tuple[list[int], int]], slots: int, blocks: int, kept: int
) -> None:
    """Small caches, in which prefixes come and go: the answers are those of nobody sharing anything."""
    block = 2 * 2 * 32 * 2 * 12 * 4
    decoder = new_decoder(lite, max_running=slots, cache_bytes=blocks * block, prefix_bytes=kept * block)
    prompts = [_sharing(sorted(lengths), rest, seed) for seed, (lengths, rest) in enumerate(asks)]
    sequences = [decoder.submit(p, OPTIONS) for p in prompts]
    single = new_decoder(lite, max_running=1)
    expected = [single.submit(p.embeds, OPTIONS).result().tokens for p in prompts]
    assert answers(sequences) == expected
    memory = decoder.memory()
    assert memory["prefix_bytes"] <= kept * block
    assert memory["cache_used"] == memory["prefix_bytes"]
    assert memory["cache_bytes"] <= blocks * block


def test_short_prefixes_are_not_worth_it(lite: Any) -> None:
    decoder = new_decoder(lite)
    for i in range(2):
        decoder.submit(_sharing([15], 5, i), OPTIONS).result()
    assert decoder.counts()["prefix_hits"] == 0
    assert decoder.memory()["prefixes"] == 0
    decoder = new_decoder(lite, shared_tokens=1)
    for i in range(2):
        decoder.submit(_sharing([15], 5, i), OPTIONS).result()
    assert decoder.counts()["prefix_hits"] == 1


def test_a_whole_prompt_is_no_prefix(lite: Any) -> None:
    """Its last token has to be computed for the answer's first one."""
    decoder = new_decoder(lite)
    given = PromptEmbeds(prompt(40), (Boundary(20, b"a"), Boundary(40, b"b")))
    sequences = [decoder.submit(given, OPTIONS) for _ in range(2)]
    drain(decoder)
    assert [s.cached_tokens for s in sequences] == [0, 20]
    assert answers(sequences) == [alone(lite, given.embeds, OPTIONS)] * 2


def test_cleared_with_new_weights(lite: Any) -> None:
    decoder = new_decoder(lite)
    decoder.submit(_sharing([40], 5, 0), OPTIONS).result()
    decoder.clear()
    assert decoder.submit(_sharing([40], 5, 1), OPTIONS).result().cached_tokens == 0


# The cache itself


def _pool(limit: int = 100) -> BlockPool:
    block = 2 * 1 * 4 * 1 * 2 * 4
    return BlockPool(1, 1, 2, torch.float32, torch.device("cpu"), 4, limit * block)


def test_the_least_recently_used_is_given_up() -> None:
    pool = _pool()
    cache = PrefixCache(pool, 3 * pool.block_bytes)
    blocks = pool.allocate(4)
    for i in range(3):
        cache.keep(Boundary(4, bytes([i])), [blocks[i]])
    assert cache.longest([Boundary(4, bytes([0]))]) == (4, (blocks[0],))
    cache.keep(Boundary(4, b"new"), [blocks[3]])
    assert [bytes([i]) in cache for i in range(3)] == [True, False, True]
    pool.release(blocks)
    assert pool.free == pool.limit - 1 - 3
    cache.clear()
    assert pool.free == pool.limit - 1
    assert cache.evictions == 4


def test_blocks_of_several_prefixes_count_once() -> None:
    pool = _pool()
    cache = PrefixCache(pool, 100 * pool.block_bytes)
    blocks = pool.allocate(3)
    cache.keep(Boundary(5, b"a"), blocks)
    cache.keep(Boundary(9, b"b"), blocks)
    cache.keep(Boundary(9, b"b"), blocks)
    assert cache.held_bytes == 3 * pool.block_bytes
    assert cache.longest([Boundary(5, b"a"), Boundary(9, b"b")]) == (9, tuple(blocks))
    assert cache.longest([Boundary(5, b"a"), Boundary(7, b"c")]) == (5, tuple(blocks[:2]))
    assert cache.longest([Boundary(7, b"c")]) == (0, ())
    assert cache.give_up()  # the longer one, which was used first
    assert cache.held_bytes == 2 * pool.block_bytes


def test_one_that_is_too_large_is_not_kept() -> None:
    pool = _pool()
    cache = PrefixCache(pool, 2 * pool.block_bytes)
    cache.keep(Boundary(9, b"a"), pool.allocate(3))
    assert len(cache) == 0


# What tells prompts apart


def _objects(tokens: torch.Tensor, scene: SceneTokens | None = None) -> Objects:
    return Objects("lite" if scene is None else "full", tokens, (ObjectTokens((len(tokens),)),), None, scene)


def _prompt(ids: list[int], regions: list[int], images: list[int]) -> Prompt:
    return Prompt(*(torch.tensor(x, dtype=torch.int64) for x in (ids, regions, images)))


def test_boundaries_of_a_lite_prompt() -> None:
    tokens = torch.randn(2, 4)
    asked = _prompt([1, 2, 0, 0, 3, 4], [2, 3], [])
    (start, first), (end, second) = prefix_boundaries(asked, _objects(tokens))
    assert (start, end) == (2, 4)
    same = prefix_boundaries(_prompt([1, 2, 0, 0, 9], [2, 3], []), _objects(tokens.clone()))
    assert same == ((2, first), (4, second))
    other = prefix_boundaries(asked, _objects(torch.randn(2, 4)))
    assert other[0] == (2, first)
    assert other[1].key != second
    text = prefix_boundaries(_prompt([1, 5, 0, 0, 3, 4], [2, 3], []), _objects(tokens))
    assert {first, second}.isdisjoint(b.key for b in text)


def test_boundaries_of_a_full_prompt() -> None:
    """Vision tokens that were dropped are in no embedding; where the scene ends another question may begin."""
    vision, kept = torch.randn(2, 4), torch.tensor([True, False, True])
    scene = SceneTokens(vision, kept, (3,))
    asked = _prompt([7, 0, 0, 0, 8, 0, 9], [5], [1, 2, 3])
    tokens = torch.randn(1, 4)
    found = prefix_boundaries(asked, _objects(tokens, scene))
    assert [b.length for b in found] == [1, 3, 5]
    elsewhere = prefix_boundaries(_prompt([7, 0, 0, 0, 6, 6, 0, 9], [6], [1, 2, 3]), _objects(torch.randn(1, 4), scene))
    assert elsewhere[:2] == found[:2]
    assert elsewhere[2] != found[2]
    dropped = SceneTokens(vision, kept.flip(0).roll(1), (3,))
    assert prefix_boundaries(asked, _objects(tokens, dropped))[1].key != found[1].key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("inference", [False, True])
def test_content_follows_what_is_in_a_tensor(dtype: torch.dtype, inference: bool) -> None:
    with torch.inference_mode(inference):
        x = torch.randn(3, 4).to(dtype)
        known = content(x)
        assert content(x.clone()) == known == content(x)
        assert content(x.to(torch.float16)) != known
        assert content(x.view(4, 3)) != known
        x[1, 2] = 5
        written = content(x)
        assert written != known
        x[1, 2] = 6
        assert content(x) not in (known, written)
    assert content(x) == content(x.clone())


def test_content_of_what_numpy_wrote() -> None:
    x = torch.randn(3, 4)
    known = content(x)
    x.numpy()[0] = 7
    assert content(x) != known


def test_content_on_a_device_is_identity() -> None:
    """Without asking the device, what cannot be told from another tensor's content counts as another."""
    x, y = (torch.zeros(2, 3, device="meta") for _ in range(2))
    known = content(x)
    assert content(x) == known
    assert known != content(y)
    with torch.inference_mode():
        x.add_(1)  # shows in the version of a tensor that was not made in here
    assert content(x) != known
    assert content(x) == content(x)
    with torch.inference_mode():
        z = torch.zeros(2, 3, device="meta")
    assert content(z) != content(z)


# The models


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_overwritten_tokens_never_give_an_old_answer(request: pytest.FixtureRequest, kind: str) -> None:
    """Written over in inference mode or through NumPy; on a device, where versions decide, both kinds have one."""
    model = request.getfixturevalue(kind)
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    objects, other = (model.encode(image, [box]) for box in ([10, 10, 50, 40], [30, 20, 80, 50]))
    assert len(objects.tokens) == len(other.tokens)
    decoder = new_decoder(model, shared_tokens=1)

    def ask(objects: Objects) -> tuple[int, ...]:
        made = model.network.build_prompt("What is <region>?", objects)
        given = PromptEmbeds(model.network.embed_prompt(made, objects), prefix_boundaries(made, objects))
        found: tuple[int, ...] = decoder.submit(given, OPTIONS).result().tokens
        assert found == alone(model, given.embeds, OPTIONS)
        return found

    encoded = [objects.tokens, *([] if objects.scene is None else [objects.scene.tokens])]
    assert not any(tokens.is_inference() for tokens in encoded)
    ask(objects)
    for written in (other.tokens, -other.tokens):
        with torch.inference_mode():
            objects.tokens.copy_(written)
        ask(objects)
    objects.tokens.numpy()[:] *= 3
    ask(objects)
    for tokens in encoded:
        before = tokens._version
        with torch.inference_mode():
            tokens.zero_()
        assert tokens._version > before


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_a_further_question_about_encoded_objects(request: pytest.FixtureRequest, kind: str) -> None:
    """Computes nothing of what the first question shared; in Full another object of the image shares the image."""
    model = request.getfixturevalue(kind)
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    objects = model.encode(image, [[10, 10, 50, 40]])
    other = model.encode(image, [[30, 20, 80, 50]])
    decoder = new_decoder(model)

    def ask(question: str, objects: Objects) -> Any:
        made = model.network.build_prompt(question, objects)
        given = PromptEmbeds(model.network.embed_prompt(made, objects), prefix_boundaries(made, objects))
        answer = decoder.submit(given, OPTIONS).result()
        assert answer.tokens == alone(model, given.embeds, OPTIONS)
        return answer, given.boundaries

    first, _ = ask("Please say what is <region>, in a word.", objects)
    assert first.cached_tokens == 0
    again, boundaries = ask("Please say what is <region>, and beside it.", objects)
    assert again.cached_tokens == boundaries[-1].length > len(objects.tokens)
    neighbour, boundaries = ask("Please say what is <region>.", other)
    # the scene's end and the last text before a region, or the text before the only region
    assert neighbour.cached_tokens == boundaries[-2].length
