"""The loss of a packed batch: encoder, object tokens, text, cross-entropy of the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pixelrefer_fast.network import Network
from pixelrefer_fast.train.batch import PackedBatch
from pixelrefer_fast.train.llm_attention import pack


class TrainingModel(nn.Module):
    """A network as the Trainer wants it: a packed batch in, a loss out.

    The operations run as their PyTorch definitions, which carry gradients; k-means assigns without one, the means of
    its clusters carry it. Object tokens and the LayerNorms around them are computed in the weights' own precision
    under mixed precision too, as rounding decides which patches are pooled together.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        pack(network.llm)

    def forward(
        self,
        batch: PackedBatch,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Mean cross-entropy of the answers' tokens.

        Args:
            batch: of `train.batch.collate`.
            labels: its targets again, for the Trainer to count; not used.
            num_items_in_batch: learnt tokens of all batches of an optimiser step; None: of this batch.

        Returns:
            {"loss": scalar float32, "correct": number of targets that are the likeliest token}.
        """
        batch = batch.to(self.network.device)
        logits = self.logits(batch)
        loss = F.cross_entropy(logits, batch.targets, reduction="sum")
        count = len(batch.targets) if num_items_in_batch is None else num_items_in_batch
        return {"loss": loss / count, "correct": (logits.detach().argmax(-1) == batch.targets).sum()}

    def logits(self, batch: PackedBatch) -> torch.Tensor:
        """(A, V) float32 logits at the places whose next token is learnt; `batch` lies on the model's device."""
        return answer_logits(self.network.llm, self.tokens(batch), vars(batch))

    def tokens(self, batch: PackedBatch) -> torch.Tensor:
        """(T + Z, C) object tokens and after them the kept vision tokens."""
        network = self.network
        features = network.features(batch.patches, batch.grids, batch.selection.reads)
        with torch.autocast(features.device.type, enabled=False):
            exact = features.to(network.dtype)
            tokens = [network.object_tokens(exact, batch.selection, batch.starts)]
            if batch.scene_rows:
                tokens.append(torch.cat(network.vision_tokens(exact, batch.scene_rows))[batch.kept])
        return torch.cat(tokens)


def answer_logits(llm: Any, tokens: torch.Tensor, text: Mapping[str, Any]) -> torch.Tensor:
    """What a packed language model says where the next token is learnt, (A, V) float32 logits; as `read_text`."""
    hidden = read_text(llm, tokens, text).last_hidden_state[0]
    return llm.lm_head(hidden[text["learnt"]]).float()


def read_text(llm: Any, tokens: torch.Tensor, text: Mapping[str, Any], every_layer: bool = False) -> Any:
    """Run a packed language model over a batch's text.

    Args:
        llm: of transformers, after `llm_attention.pack`.
        tokens: (T + Z, C) object tokens and after them the kept vision tokens.
        text: by name, `PackedBatch`'s fields from `input_ids` on; all on one device.
        every_layer: give what every layer makes.

    Returns:
        Of transformers: `last_hidden_state` (1, L, C) and, of every layer, `hidden_states`.
    """
    embeds = llm.get_input_embeddings()(text["input_ids"])
    embeds = embeds.index_copy(0, text["slots"], tokens[text["rows"]].to(embeds.dtype))
    return llm.model(
        inputs_embeds=embeds[None],
        position_ids=text["position_ids"][None],
        use_cache=False,
        cu_seq_lens_q=text["cu_queries"],
        cu_seq_lens_k=text["cu_keys"],
        max_length_q=text["longest_query"],
        max_length_k=text["longest_key"],
        key_rows=text["keys"],
        output_hidden_states=every_layer,
    )
