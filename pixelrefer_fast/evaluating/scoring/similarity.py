"""Categories as sentences: the Semantic Similarity of Osprey, by a local sentence encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixelrefer_fast.checks.values import reason_of
from pixelrefer_fast.evaluating.scoring.words import plain_words

if TYPE_CHECKING:
    import torch

MODEL_FILES = ("modules.json", "config.json")


class SentenceSimilarity:
    """The cosine of two texts' embeddings, each text encoded by itself: in a batch its last digits depend on the rest.

    Args:
        folder: a sentence encoder in sentence-transformers' format, such as all-MiniLM-L6-v2.

    Raises:
        ValueError: sentence-transformers is missing, or cannot load the folder.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ValueError(
                "--encoder: expected sentence-transformers, which the extra eval brings, got none"
            ) from None
        if not any((folder / name).is_file() for name in MODEL_FILES):
            raise ValueError(f"--encoder {folder}: expected a folder with {' or '.join(MODEL_FILES)}, got none")
        try:
            self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except Exception as error:  # of several libraries
            raise ValueError(f"--encoder {folder}: cannot be loaded: {reason_of(error)}") from error
        self._known: dict[str, torch.Tensor] = {}

    def of(self, answer: str, gold: str) -> torch.Tensor:
        """A scalar float32 tensor."""
        from sentence_transformers import util

        return util.cos_sim(self._embedding(plain_words(answer)), self._embedding(plain_words(gold)))[0, 0]

    def _embedding(self, text: str) -> torch.Tensor:
        if text not in self._known:
            self._known[text] = self._model.encode(text, convert_to_tensor=True, show_progress_bar=False)
        return self._known[text]


def mean_similarity(
    encoder: SentenceSimilarity, pairs: Sequence[tuple[str, str]], told: Callable[[int], None] = lambda done: None
) -> tuple[float, list[float]]:
    """The mean over (answer, gold), summed in float32 and in order as the authors' script does, and each value."""
    import torch

    total = torch.zeros(())
    values = []
    for done, (answer, gold) in enumerate(pairs, 1):
        value = encoder.of(answer, gold)
        total = total + value
        values.append(float(value))
        told(done)
    return float(total / (len(pairs) + 1e-10)), values
