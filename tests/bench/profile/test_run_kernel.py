"""One operation launched by itself: its arguments by named sizes, by sample, and as a model's call had them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._pytree import tree_leaves

from pixelrefer_fast import ops
from pixelrefer_fast.bench.profile import calls, run_kernel
from pixelrefer_fast.bench.run import arguments
from pixelrefer_fast.ops import registry
from pixelrefer_fast.ops._registry import listen

CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "add_norm": {"rows": 3, "width": 16},
    "infuse": {"objects": 3, "rows": [4, 4, 6], "first": [0, 0, 4], "tokens": 2, "width": 16, "heads": 2},
    "object_pool": {"objects": 2, "patches": [5, 3], "tokens": 2, "width": 16, "corners": 4},
    "object_tokens": {"objects": 2, "patches": [5, 3], "tokens": 2, "width": 16, "llm_width": 6, "rows": [3, 4]},
    "best_token": {"rows": 2, "vocabulary": 30, "said": 3},
    "linear_gelu": {"rows": 2, "width": 8, "inner": 5},
    "mask_grids": {"objects": 2},
    "pack_masks": {"objects": 2, "height": 9, "width": 40},
    "norm_linear": {"rows": 2, "width": 8, "made": 5},
    "pack_objects": {"objects": 2},
    "pack_views": {"objects": 2},
    "paged_attention": {"sequences": 2, "lengths": [3, 70], "heads": 4, "groups": 2, "head": 16},
    "place_patches": {"objects": 2},
    "rope2d": {"patches": 5, "heads": 2, "head": 8},
    "scatter_tokens": {"objects": 2, "tokens": 3, "width": 8},
    "swiglu": {"rows": 2, "width": 8, "inner": 5},
    "varlen_attention": {"keys": [5, 3], "queries": [2, 3], "heads": 4, "groups": 2, "head": 16, "causal": 1},
    "view_patches": {"kind": "full", "objects": 1, "height": 60, "width": 80, "frames": 2},
}


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_operation_takes_the_arguments_made_for_it(name: str) -> None:
    made = arguments.make(name, CPU, torch.float32, SMALL[name])
    again = arguments.make(name, CPU, torch.float32, SMALL[name])
    for value, same in zip(tree_leaves(made), tree_leaves(again), strict=True):
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same
    registry()[name].definition(*made)
    assert set(SMALL[name]) <= set(arguments.sizes_of(name))


@pytest.mark.parametrize(
    ("op", "sizes", "words"),
    [
        ("dance", {}, "operation"),
        ("infuse", {"patches": 3}, "patches"),
        ("infuse", {"rows": 0}, "rows"),
        ("infuse", {"objects": 2, "rows": [3, 4, 5]}, "rows"),
        ("object_pool", {"patches": []}, "patches"),
        ("view_patches", {"kind": 3}, "kind"),
        ("view_patches", {"kind": "half"}, "kind"),
        ("rope2d", {"patches": "many"}, "patches"),
    ],
)
def test_sizes_that_make_no_call(op: str, sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        arguments.make(op, CPU, torch.float32, sizes)


def test_sizes_on_the_command_line() -> None:
    assert run_kernel.parsed_sizes(["rows=9", "patches=5,3", "kind=lite"]) == {
        "rows": 9,
        "patches": [5, 3],
        "kind": "lite",
    }
    for word in ("rows", "=3", "rows="):
        with pytest.raises(ValueError, match="--shape"):
            run_kernel.parsed_sizes([word])


@pytest.mark.kernel
@pytest.mark.parametrize("chosen", [("--shape", "rows=3", "width=16"), ("--case", "sample-0")])
def test_kernels_run_alone(chosen: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    device = ("--device", "cpu") if not torch.cuda.is_available() else ()
    assert run_kernel.main(["add_norm", *chosen, *device, "--dtype", "float32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["op"], found["backend"]) == ("add_norm", "triton")
    (kernel,) = found["kernels"]
    assert kernel["name"] == "add_norm.rows"
    assert kernel["flops"] > 0
    assert kernel["moved"] > 0
    assert found["seconds"]["median"] > 0


def test_definitions_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--shape", "objects=2", "tokens=3", "width=8")
    assert run_kernel.main(["scatter_tokens", *sizes, "--device", "cpu", "--backend", "torch", "--repeats", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("scatter_tokens by torch on cpu: objects=2, tokens=3, width=8\n")
    assert "a call" in printed


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("dance",), "operation"),
        (("infuse", "--shape", "rows"), "--shape"),
        (("infuse", "--shape", "rows=3", "--case", "sample-0"), "--shape"),
        (("infuse", "--case", "sample-99"), "sample-0"),
        (("infuse", "--repeats", "0"), "--repeats"),
        (("infuse", "--calls", "nowhere.safetensors"), "nowhere"),
        (("infuse", "--calls", "nowhere.safetensors", "--dtype", "float16"), "--dtype"),
        (("pack_views", "--backend", "triton"), "triton"),
        (("infuse", "--backend", "dance", "--case", "sample-0"), "dance"),
    ],
)
def test_what_cannot_be_launched_is_one_line(
    line: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_kernel.main([*line, "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err


def test_calls_are_kept_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = torch.randn(7, 3, 2, 8) * 3 + 1
    q, k, v = whole.unbind(1)
    offsets = torch.tensor([0, 4, 7], dtype=torch.int32)
    place = "encoder"
    with calls.capturing(lambda: place) as taken:
        for _ in range(2):
            ops.varlen_attention(q, k, v, offsets, offsets, 4, 4, backend="torch")
        place = "prefill"
        ops.varlen_attention(q, k, v, offsets, offsets, 4, 4, True, backend="torch")
        ops.add_norm(torch.randn(3, 4).half(), torch.zeros(3, 4).half(), None, None, 1e-6, backend="torch")
    ops.add_norm(torch.randn(3, 4), torch.zeros(3, 4), None, None, 1e-6, backend="torch")  # outside
    file = tmp_path / "calls.safetensors"
    calls.save(taken, file)
    loaded = calls.load(file)
    assert [(call.name, call.times) for call in loaded] == [
        ("encoder/varlen_attention/0", 2),
        ("prefill/varlen_attention/0", 1),
        ("prefill/add_norm/0", 1),
    ]
    made = loaded[0].make(CPU)
    assert made[0].stride() == q.stride()
    assert made[0].dtype == torch.float32
    assert made[0].mean() == pytest.approx(1, abs=1.5)
    assert made[0].std() == pytest.approx(3, rel=0.5)
    assert torch.equal(made[0], loaded[0].make(CPU)[0])
    assert not torch.equal(made[0], made[1])
    assert torch.equal(made[3], offsets)
    assert made[5:] == (4, 4, False)  # as it was called, the default that was left out with it
    assert loaded[1].make(CPU)[7] is True
    half = loaded[2].make(CPU)
    assert half[0].dtype == torch.float16
    assert half[2:] == (None, None, 1e-6)
    assert not half[1].any()

    case = ("--calls", str(file), "--device", "cpu", "--backend", "torch")
    assert run_kernel.main(["varlen_attention", *case, "--case", "prefill/varlen_attention/0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["case"] == "prefill/varlen_attention/0"
    assert run_kernel.main(["varlen_attention", *case, "--list"]) == 0
    assert "encoder/varlen_attention/0: 7x2x8 7x2x8 7x2x8 3 3 4 4 False, 2 times" in capsys.readouterr().out
    assert run_kernel.main(["rope2d", *case]) == 2
    assert "no call of it" in capsys.readouterr().err


def test_files_that_hold_no_calls(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.ones(2)}, other)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x09")
    foreign = tmp_path / "foreign.safetensors"
    calls.save([calls.Call("a/dance/0", "dance", [])], foreign)
    for file in (other, broken, foreign, tmp_path / "gone", tmp_path):
        with pytest.raises(ValueError, match=file.name):
            calls.load(file)
    with pytest.raises(ValueError, match="no"):
        calls.save([], tmp_path / "no" / "calls.safetensors")


def test_listeners_hear_every_call_and_no_more() -> None:
    heard: list[str] = []
    x = torch.ones(2, 4)
    with listen(lambda op, args: heard.append(f"{op.name} {len(args)}")):
        ops.add_norm(x, delta=x, weight=None, bias=None, eps=1e-6)
    ops.add_norm(x, x, None, None, 1e-6)
    assert heard == ["add_norm 5"]
