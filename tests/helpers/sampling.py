"""What a sample of questions may show of a model whose accuracy is known from more of them."""

from __future__ import annotations

from math import exp, lgamma, log


def at_most(right: int, asked: int, accuracy: float) -> float:
    """The probability that of `asked` questions at most `right` are answered right."""
    if right >= asked or accuracy <= 0:
        return 1.0
    if accuracy >= 1:
        return 0.0
    hit, miss = log(accuracy), log(1 - accuracy)

    def term(k: int) -> float:  # by logarithms: the binomials of thousands overflow
        ways = lgamma(asked + 1) - lgamma(k + 1) - lgamma(asked - k + 1)
        return exp(ways + k * hit + (asked - k) * miss)

    return min(1.0, sum(map(term, range(right + 1))))


def lower_bound(accuracy: float, asked: int, risk: float) -> float:
    """The lowest true accuracy that still gives the measured one or more with probability `risk` (Clopper-Pearson)."""
    right = round(accuracy * asked)
    low, high = 0.0, 1.0
    if right == 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - at_most(right - 1, asked, middle) < risk:
            low = middle
        else:
            high = middle
    return low


def least_right(accuracy: float, measured: int, asked: int, risk: float = 1e-3) -> int:
    """How many of `asked` questions must be right, given the accuracy on `measured` others: both samples err."""
    true = lower_bound(accuracy, measured, risk)
    right = 0
    while at_most(right, asked, true) < risk:
        right += 1
    return right
