"""Every operation as a torch.library operator: its schema and shapes hold, and torch.compile takes it whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pixelrefer_fast.ops import registry

OPS = sorted(registry())


def _samples(name: str) -> list[tuple]:
    return list(registry()[name].samples(torch.Generator().manual_seed(0), torch.float32))


def _results(name: str, returned: Any, arguments: tuple) -> list[torch.Tensor]:
    op = registry()[name]
    names = [a.name for a in op.operator._schema.arguments]
    tensors = [] if returned is None else [returned] if isinstance(returned, torch.Tensor) else list(returned)
    return [*tensors, *(arguments[names.index(written)] for written in op.mutates)]


def _copied(arguments: tuple) -> tuple:
    return tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments)


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str) -> None:
    for sample in _samples(name):
        torch.library.opcheck(registry()[name].operator, sample)


@pytest.mark.parametrize("name", OPS)
def test_the_operator_computes_what_the_operation_does(name: str) -> None:
    op = registry()[name]
    for sample in _samples(name):
        eager, called = _copied(sample), _copied(sample)
        wanted = _results(name, op(*eager), eager)
        given = _results(name, op.operator(*called), called)
        assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_compiled_whole(name: str) -> None:
    """One graph without a break, with the operator in it, and the same result."""
    op = registry()[name]
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    for sample in _samples(name):
        torch.compiler.reset()
        graphs.clear()
        eager, compiled = _copied(sample), _copied(sample)
        wanted = _results(name, op(*eager), eager)
        run = torch.compile(lambda *args: op(*args, backend="torch"), fullgraph=True, backend=keep)
        given = _results(name, run(*compiled), compiled)
        assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))
        (graph,) = graphs
        assert op.operator in {node.target for node in graph.graph.nodes} or op.operator.overloadpacket in {
            node.target for node in graph.graph.nodes
        }


@pytest.mark.parametrize("name", ["pack_objects", "pack_views"])
def test_a_named_tuple_stays_one_when_compiled(name: str) -> None:
    op = registry()[name]
    sample = _samples(name)[0]
    fields = op.dispatch(*sample)._fields
    run = torch.compile(lambda *args: op(*args)._asdict(), fullgraph=True, backend="eager")
    assert tuple(run(*sample)) == fields
