"""Judges' prompts from a checkout of the authors' repository: its files are read as text, nothing of it runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pixelrefer_fast.checks.safe_files import reading
from pixelrefer_fast.evaluating.judging.prompts import (
    CANDIDATES,
    CAPTION,
    NAME,
    QUESTION,
    TARGETS,
    JudgePrompts,
)

FOLDERS = ("PixelRefer/evaluation", "evaluation", "")


def checkout_prompts(reference: Path) -> JudgePrompts:
    """The prompts of the authors' evaluation scripts.

    Args:
        reference: the checkout, or its folder `evaluation`.

    Raises:
        ValueError: a file is missing, or does not hold the text that this version of it is known to hold.
    """
    folder = next((reference / name for name in FOLDERS if (reference / name / "clair/clair.py").exists()), None)
    if folder is None:
        raise ValueError(f"--reference {reference}: expected {FOLDERS[0]}/clair/clair.py in it, got none")
    dlc = _Script(folder / "dam/eval.py")
    recognition = dlc.assigned("recognition_question", NAME)
    single, plural = [[text for text in recognition if (" objects in" in text) is many] for many in (False, True)]
    rating = folder / "videorefer_bench_d/system.txt"
    with reading(rating):
        told = rating.read_text(encoding="utf-8")
    return JudgePrompts(
        clair=_Script(folder / "clair/clair.py").one("_CLAIR_PROMPT", CANDIDATES, TARGETS),
        choice=dlc.one("prompt_eval", CAPTION, QUESTION),
        one_object=dlc.only("recognition_question", single),
        many_objects=dlc.only("recognition_question", plural),
        rating=told,
        condensing=_Script(folder / "refl4/gpt.py").one("prompt"),
        review=_Script(folder / "ferret_bench/2.eval_ferret.py").system(),
        origin="reference",
    )


class _Script:
    """One of the scripts, parsed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            text = path.read_text(encoding="utf-8")
        try:
            self.tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: expected Python, got something else ({error})") from None

    def assigned(self, name: str, *holes: str) -> list[str]:
        """Texts that are assigned to `name`; what an f-string fills in stands as the first of `holes`."""
        texts = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                text = _text_of(node.value, holes[0] if holes else "")
                if text is not None:
                    texts.append(text)
        return texts

    def one(self, name: str, *holes: str) -> str:
        """The only text assigned to `name`, which has these holes."""
        return self.only(name, [text for text in self.assigned(name) if all(hole in text for hole in holes)])

    def only(self, name: str, texts: list[str]) -> str:
        if len(texts) != 1:
            raise ValueError(f"{self.path}: expected one text {name}, got {len(texts)}")
        return texts[0]

    def system(self) -> str:
        """The content of the only literal message of the role `system`."""
        return self.only("of the role system", list(self._system_texts()))

    def _system_texts(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Dict):
                entries = {
                    key.value: value.value
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
                }
                text = entries.get("content")
                if entries.get("role") == "system" and isinstance(text, str):
                    yield text


def _text_of(node: ast.expr, hole: str) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else hole for part in node.values)
    return None
