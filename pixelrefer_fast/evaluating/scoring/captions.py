"""Captions against reference captions by pycocoevalcap: METEOR, CIDEr, BLEU-4, ROUGE-L and SPICE, which need Java."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path

METEOR, CIDER, BLEU, ROUGE, SPICE = "METEOR", "CIDEr", "BLEU-4", "ROUGE-L", "SPICE"
WORDS = 100  # of an answer that are scored
# what SPICE's parser needs, and pycocoevalcap downloads into its own folder when SPICE runs first
PARSER = ("lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar")


def first_words(text: str, words: int = WORDS) -> str:
    """An answer cut after so many words, parted by single spaces."""
    return " ".join(text.split(" ")[:words])


def check_captioning() -> None:
    """ValueError unless pycocoevalcap and Java are here."""
    if util.find_spec("pycocoevalcap") is None:
        raise ValueError("captions are scored by pycocoevalcap, which the extra eval brings: expected it, got none")
    if shutil.which("java") is None:
        raise ValueError("captions are scored by programs in Java: expected the command java, got none")


def spice_objection() -> str:
    """Why SPICE cannot be computed; empty where it can."""
    spec = util.find_spec("pycocoevalcap")
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) / "spice" if spec else Path()
    missing = [name for name in PARSER if not (folder / name).exists()]
    if missing:
        return f"its parser is not in {folder}: {', '.join(missing)} (Stanford CoreNLP 3.6.0)"
    return ""


def _numbered(texts: Sequence[Sequence[str]]) -> dict[int, list[dict[str, str]]]:
    """As the tokenizer takes them; it reads a caption a line, and knows more line breaks than its wrapper removes."""
    return {number: [{"caption": " ".join(text.splitlines())} for text in own] for number, own in enumerate(texts)}


def caption_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]], wanted: Sequence[str]
) -> tuple[dict[str, float | None], list[dict[str, float]], dict[str, str]]:
    """Each of the wanted metrics over all captions.

    Args:
        captions: one a region.
        references: right ones of each.
        wanted: metrics by name.

    Returns:
        The metrics, None for one that cannot be computed; the same of each caption; why those are None.

    Raises:
        ValueError: pycocoevalcap or Java is missing.
    """
    check_captioning()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.spice.spice import Spice
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    unavailable: dict[str, str] = {}
    values: dict[str, float | None] = {}
    details: list[dict[str, float]] = [{} for _ in captions]
    with contextlib.redirect_stdout(sys.stderr):  # these libraries print
        tokenizer = PTBTokenizer()
        said = tokenizer.tokenize(_numbered([[text] for text in captions]))
        right = tokenizer.tokenize(_numbered(references))
        scorers = {METEOR: Meteor, CIDER: Cider, BLEU: lambda: Bleu(4), ROUGE: Rouge, SPICE: Spice}
        for name in wanted:
            if name == SPICE and (objection := spice_objection()):
                values[name], unavailable[name] = None, objection
                continue
            total, each = scorers[name]().compute_score(right, said)
            if name == BLEU:  # of 1 to 4 words
                total, each = total[-1], each[-1]
            values[name] = float(total)
            for detail, value in zip(details, each, strict=True):
                detail[name] = float(value["All"]["f"] if name == SPICE else value)
    return values, details, unavailable
