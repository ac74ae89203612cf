"""A layer of Qwen2 as a step uses it: its modules and merged weights, found once for many steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pixelrefer_fast import ops
from pixelrefer_fast.decoding.projections import Projection

if TYPE_CHECKING:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding

STATIC = ("default", "linear", "llama3", "yarn")  # kinds of rotary embedding that no length changes


class Norm:
    """A Qwen2RMSNorm, as one kernel where torch has one."""

    def __init__(self, module: Qwen2RMSNorm) -> None:
        self.weight, self.epsilon = module.weight, module.variance_epsilon
        self._shape = tuple(module.weight.shape)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.rms_norm(x, self._shape, self.weight, self.epsilon)


class Layer:
    """What a layer computes with.

    Args:
        module: of transformers.
    """

    def __init__(self, module: Qwen2DecoderLayer) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.before_attention = Norm(module.input_layernorm)
        self.qkv = Projection((attention.q_proj, attention.k_proj, attention.v_proj))
        self.out = Projection((attention.o_proj,))
        self.before_mlp = Norm(module.post_attention_layernorm)
        self.gate_up = Projection((mlp.gate_proj, mlp.up_proj))
        self.activation: Callable[[torch.Tensor], torch.Tensor] = mlp.act_fn
        self._is_silu = mlp.config.hidden_act == "silu"
        self.down = Projection((mlp.down_proj,))

    def attended(self, x: torch.Tensor, backend: str, few: bool) -> torch.Tensor:
        """Queries, keys and values of rows that the norm has not seen; `few`: of a step."""
        norm, qkv = self.before_attention, self.qkv
        if few and qkv.plain and qkv.weight is not None:
            return ops.norm_linear(x, norm.weight, norm.epsilon, qkv.weight, qkv.bias, backend=backend)
        return qkv(norm(x))

    def gated(self, x: torch.Tensor, backend: str, few: bool) -> torch.Tensor:
        """What `down` is given, of rows that the norm has not seen; `few`: of a step, whose weights are read once."""
        gate_up = self.gate_up
        if few and self._is_silu and gate_up.plain and gate_up.weight is not None and gate_up.bias is None:
            norm = self.before_mlp
            return ops.swiglu(x, norm.weight, norm.epsilon, gate_up.weight, backend=backend)
        gate, up = gate_up(self.before_mlp(x)).chunk(2, -1)
        return self.activation(gate) * up

    def fits(self, module: Qwen2DecoderLayer) -> bool:
        """Whether these still are the module's own."""
        attention, mlp = module.self_attn, module.mlp
        return (
            self.before_attention.weight is module.input_layernorm.weight
            and self.before_mlp.weight is module.post_attention_layernorm.weight
            and self.qkv.fits((attention.q_proj, attention.k_proj, attention.v_proj))
            and self.out.fits((attention.o_proj,))
            and self.gate_up.fits((mlp.gate_proj, mlp.up_proj))
            and self.down.fits((mlp.down_proj,))
        )


class Rotary:
    """Cosines and sines of positions, kept for those that come again.

    Args:
        module: of transformers.
        like: a tensor of the dtype and device that they are wanted in.
    """

    def __init__(self, module: Qwen2RotaryEmbedding, like: torch.Tensor) -> None:
        self.module = module
        self._like = like[:1].detach()
        # by length; a captured step reads the one that it was captured with
        self._tables: dict[int, torch.Tensor] = {}

    def fits(self, module: Qwen2RotaryEmbedding, like: torch.Tensor) -> bool:
        return module is self.module and (like.dtype, like.device) == (self._like.dtype, self._like.device)

    def __call__(self, positions: torch.Tensor, most: int) -> torch.Tensor:
        """(n, 2, d): cosines, and sines of which the first half is negative; `positions` (n,) are below `most`."""
        if self.module.rope_type not in STATIC:
            return self._computed(positions)
        length = 1 << (most - 1).bit_length()
        if length not in self._tables:
            self._tables[length] = self._computed(torch.arange(length, device=positions.device))
        return self._tables[length].index_select(0, positions)

    def _computed(self, positions: torch.Tensor) -> torch.Tensor:
        cos, sin = (table[0] for table in self.module(self._like, positions[None]))
        first, second = sin.chunk(2, -1)
        return torch.stack([cos, torch.cat([-first, second], -1)], 1)
