"""How Qwen2's modules run here: packed or batched rows through the layers, keys and values in blocks of our own.

Weights and modules are transformers'; what runs them is this file, for prompts of any lengths (`prefill`) and for one
token of each sequence (`step`). Rows of all sequences lie one after the other, so that nothing is padded, and nothing
waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pixelrefer_fast import ops
from pixelrefer_fast.decoding.cache import BlockPool
from pixelrefer_fast.decoding.layers import Layer, Norm, Rotary
from pixelrefer_fast.device.transfers import upload

if TYPE_CHECKING:
    from transformers import Qwen2Config, Qwen2ForCausalLM

Attend = Callable[[int, torch.Tensor], torch.Tensor]  # of a layer and its queries, keys and values (n, heads, d)


@dataclass(frozen=True)
class PrefillLayout:
    """Where the tokens of a packed prefill stand.

    Attributes:
        positions: (L,) int64 of each token in its sequence.
        rows: (L,) int64 rows of the cache for their keys and values.
        cu_queries, cu_keys: (S + 1,) int32; a sequence has as many more keys than queries as are in the cache already.
        longest_query, longest_key: of the sequences.
        key_rows: (Lk,) int64 rows of all keys, None where there are none but those of the tokens themselves.
        last: (E,) int64, the last token of each sequence that ends in this pass.
    """

    positions: torch.Tensor
    rows: torch.Tensor
    cu_queries: torch.Tensor
    cu_keys: torch.Tensor
    longest_query: int
    longest_key: int
    key_rows: torch.Tensor | None
    last: torch.Tensor

    def to(self, device: torch.device) -> PrefillLayout:
        """The tables on `device`, in one copy."""
        tables = [self.positions, self.rows, self.cu_queries, self.cu_keys, self.last]
        if self.key_rows is not None:
            tables.append(self.key_rows)
        positions, rows, cu_queries, cu_keys, last, *key_rows = upload(tables, device)
        return replace(
            self,
            positions=positions,
            rows=rows,
            cu_queries=cu_queries,
            cu_keys=cu_keys,
            last=last,
            key_rows=key_rows[0] if key_rows else None,
        )


class LanguageModel:
    """A Qwen2ForCausalLM of transformers, run by us.

    Args:
        llm: the model; its modules are looked up at every pass over prompts, so that they may be quantised or moved
            while nothing is being decoded.
        backend: who computes the operations.
    """

    def __init__(self, llm: Qwen2ForCausalLM, backend: str = "auto") -> None:
        self.llm = llm
        self.backend = backend
        self._layers: list[Layer] = []
        self._rotary: Rotary | None = None
        self._ends: tuple[object, object] = (None, None)  # what comes behind the layers
        self._version = 0

    def __getstate__(self) -> dict[str, object]:
        """A copy has weights, and what is merged of them, of its own."""
        return self.__dict__ | {"_layers": [], "_rotary": None, "_ends": (None, None)}

    @property
    def config(self) -> Qwen2Config:
        return self.llm.config

    @property
    def device(self) -> torch.device:
        return self.llm.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.llm.model.embed_tokens.weight.dtype

    def new_pool(self, size: int, limit_bytes: int) -> BlockPool:
        """Blocks for this model's keys and values."""
        attention = self.llm.model.layers[0].self_attn
        return BlockPool(
            layers=len(self.llm.model.layers),
            heads=self._groups,
            head_dim=attention.head_dim,
            dtype=self.dtype,
            device=self.device,
            size=size,
            limit_bytes=limit_bytes,
        )

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, C) of n token ids."""
        return self.llm.model.embed_tokens(tokens)

    def prefill(self, embeds: torch.Tensor, layout: PrefillLayout, pool: BlockPool) -> torch.Tensor:
        """Keys and values of packed prompts, or parts of them, into the cache, and the logits (E, V) of `layout.last`.

        `embeds` (L, C) is written over.
        """

        self.look_up()
        assert self._rotary is not None
        groups = self._groups
        heads = self.config.num_attention_heads
        cos, sin = self._rotary(layout.positions, layout.longest_key)[:, :, None].unbind(1)

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            turned = _rotated(qkv[:, : heads + groups], cos, sin)
            q, k, v = turned[:, :heads], turned[:, heads:], qkv[:, heads + groups :]
            pool.write(layer, layout.rows, k, v)
            if layout.key_rows is not None:
                k, v = pool.read(layer, layout.key_rows)
            return ops.varlen_attention(
                q,
                k,
                v,
                layout.cu_queries,
                layout.cu_keys,
                layout.longest_query,
                layout.longest_key,
                True,
                backend=self.backend,
            )

        hidden = self._hidden(embeds, attend, few=False)
        if not len(layout.last):  # a quantised layer may know no product of no rows
            return hidden.new_empty(0, self.config.vocab_size)
        return self._logits(hidden.index_select(0, layout.last))

    def step(self, tokens: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor, pool: BlockPool) -> torch.Tensor:
        """One token of each sequence.

        Args:
            tokens: (B,) int64.
            lengths: (B,) int32: tokens before it, whose keys and values are in the cache.
            table: (B, W) int32: blocks of each sequence, wide enough for one token more.
            pool: the cache, which this token's keys and values go to.

        Returns:
            (B, V) logits of the tokens that follow.
        """
        if self._rotary is None:
            self.look_up()
        assert self._rotary is not None
        place = lengths.long()
        block = table.gather(1, (place // pool.size)[:, None])[:, 0]
        rows = block * pool.size + place % pool.size
        after = lengths + 1
        turns = self._rotary(place, table.shape[1] * pool.size)
        arrivals = pool.arrivals(len(tokens))

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return ops.paged_attention(
                qkv, turns, rows, pool.keys[layer], pool.values[layer], table, after, arrivals, backend=self.backend
            )

        return self._logits(self._hidden(self.embed(tokens), attend, few=True))

    def look_up(self) -> int:
        """Find modules and merge weights, where they are not those of the last time, which moves them once.

        Returns:
            How often they were not: a number that changes with them.
        """
        model = self.llm.model
        if len(self._layers) != len(model.layers):
            self._layers = [Layer(module) for module in model.layers]
            self._version += 1
        for number, module in enumerate(model.layers):
            if not self._layers[number].fits(module):
                self._layers[number] = Layer(module)
                self._version += 1
        if self._rotary is None or not self._rotary.fits(model.rotary_emb, model.norm.weight):
            self._rotary = Rotary(model.rotary_emb, model.norm.weight)
            self._version += 1
        ends = model.norm, self.llm.lm_head
        if any(own is not found for own, found in zip(self._ends, ends, strict=True)):
            self._ends = ends
            self._version += 1
        return self._version

    @property
    def _groups(self) -> int:
        """Heads of keys, and of values."""
        return self.config.num_key_value_heads or self.config.num_attention_heads

    def _hidden(self, x: torch.Tensor, attend: Attend, few: bool) -> torch.Tensor:
        """Through all layers, written over `x`; `few`: rows of a step."""
        heads = self.config.num_attention_heads + 2 * self._groups
        for number, layer in enumerate(self._layers):
            qkv = layer.attended(x, self.backend, few).view(len(x), heads, -1)
            x = layer.out.add(x, attend(number, qkv).flatten(1))
            x = layer.down.add(x, layer.gated(x, self.backend, few))
        return Norm(self.llm.model.norm)(x)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.llm.lm_head(hidden)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(n, heads, d) turned by its positions: element i with element i + d / 2; the first half of `sin` is negative."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
