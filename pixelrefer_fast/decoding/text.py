"""Tokens to text, whole or piece by piece."""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what a tokenizer decodes bytes of an unfinished character to


class Detokenizer:
    """Text of tokens as the reference shows it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._hidden = frozenset(tokenizer.all_special_ids)

    def __call__(self, tokens: Iterable[int]) -> str:
        # The reference's tokenizer leaves out the registered special tokens but not those it added by itself.
        kept = [t for t in tokens if t not in self._hidden]
        text = self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # a list of texts is for a list of lists
        return text


class TextStream:
    """Pieces of an answer's text as its tokens come.

    The pieces join to the text of all tokens without surrounding white space, up to where the first stop string that is
    complete begins. A character that spans tokens comes whole; what may yet turn out to be white space at the end or a
    stop string waits.

    Args:
        decode: text of tokens, such that parts between whole characters join to the whole.
        stop: texts that end the answer.
    """

    def __init__(self, decode: Detokenizer, stop: abc.Sequence[str] = ()) -> None:
        self.stopped = False  # by a stop string; what is fed afterwards is ignored
        self._decode = decode
        self._stop = tuple(stop)
        self._pending: list[int] = []  # tokens of a character that is not whole
        self._held = ""  # text that is not given out
        self._started = False

    def feed(self, token: int, may_stop: bool = True) -> str:
        """The piece that this token completes, "" for none; what may not stop is no part of a stop string."""
        if self.stopped:
            return ""
        self._pending.append(token)
        text = self._decode(self._pending)
        if text.endswith(BROKEN):
            return ""
        self._pending.clear()
        return self._give(text, final=False, may_stop=may_stop)

    def finish(self) -> str:
        """What was held back, once there are no more tokens."""
        if self.stopped:
            return ""
        text = self._decode(self._pending)
        self._pending.clear()
        return self._give(text, final=True)

    def _give(self, text: str, final: bool, may_stop: bool = True) -> str:
        self._held += text
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0 and may_stop]
        if found:
            self.stopped = final = True
            self._held = self._held[: min(found)]
        safe = self._held if final else self._held[: len(self._held) - self._waiting() * may_stop]
        piece = safe.rstrip()
        body = piece if self._started else piece.lstrip()
        if body:
            self._started = True
            self._held = self._held[len(piece) :]
        return body

    def _waiting(self) -> int:
        """Length of the longest end of the held text that a stop string may begin with."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-length:]) for s in self._stop):
                return length
        return 0
