"""What a definition says of its arguments, said once: read for the operator's schema, and held against whoever helps.

A check, empty results or a provider's reason to decline name those of the definition's arguments that they look at, and
are called with these. A provider has the definition's own signature.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from itertools import zip_longest
from operator import itemgetter
from typing import Any, TypeVar

import torch

R = TypeVar("R")


def schema_of(signature: inspect.Signature, mutates: tuple[str, ...], static: tuple[str, ...]) -> str:
    """Arguments and results of the operator, as "(Tensor x, int n) -> Tensor".

    Args:
        signature: of the definition, annotations as types.
        mutates: arguments that are written to.
        static: integers whose value a compiled graph is made for; of others it may take any.

    Raises:
        ValueError: an annotation that no schema has, or a name in `mutates` or `static` that is no such argument.
    """
    returns = signature.return_annotation
    if hasattr(returns, "_fields"):  # a named tuple, which the schema knows as a plain one
        signature = signature.replace(return_annotation=tuple[(torch.Tensor,) * len(returns._fields)])  # type: ignore[misc]

    def prototype() -> None: ...

    prototype.__signature__ = signature  # type: ignore[attr-defined]
    schema = torch.library.infer_schema(prototype, mutates_args=mutates)
    for name in static:
        schema, found = re.subn(rf"\bSymInt {name}\b", f"int {name}", schema)
        if not found:
            raise ValueError(f"static: expected integers out of {schema}, got {name!r}")
    # torch numbers the arguments that are written to, the extension's schemas letter them
    numbers = list(dict.fromkeys(re.findall(r"\(a\d+!\)", schema)))
    for letter, number in zip("abcdefgh", numbers, strict=False):
        schema = schema.replace(number, f"({letter}!)")
    return schema


def on_named(described: str, signature: inspect.Signature, function: Callable[..., R]) -> Callable[[tuple], R]:
    """`function` as one of all the definition's arguments, which is given those that it names.

    Raises:
        ValueError: it names an argument that the definition has not, or of another type.
    """
    names = list(signature.parameters)
    own = inspect.signature(function, eval_str=True).parameters.values()
    for parameter in own:
        there = signature.parameters.get(parameter.name)
        if there is None or parameter.annotation not in (parameter.empty, there.annotation):
            expected = there or f"arguments out of {', '.join(names)}"
            raise ValueError(f"{described}: expected {expected}, got {parameter}")
    places = [names.index(parameter.name) for parameter in own]
    if places == list(range(len(names))):
        return lambda args: function(*args)
    if len(places) < 2:  # of which no tuple is made
        return lambda args: function(*[args[place] for place in places])
    chosen = itemgetter(*places)
    return lambda args: function(*chosen(args))


def check_same(described: str, signature: inspect.Signature, function: Callable[..., Any]) -> None:
    """Raise a ValueError unless `function` has this signature: names, order, types, defaults and result."""
    own = inspect.signature(function, eval_str=True)
    for expected, given in zip_longest(signature.parameters.values(), own.parameters.values()):
        if expected != given:
            kind = f", {given.kind.description}" if given and str(given) == str(expected) else ""
            raise ValueError(f"{described}: expected {expected or 'no further argument'}, got {given or 'none'}{kind}")
    if own.return_annotation != signature.return_annotation:
        expected, given = (inspect.formatannotation(s.return_annotation) for s in (signature, own))
        raise ValueError(f"{described}: expected a result of {expected}, got {given}")
