"""Curves and tables of the embedded models' training, from the files that the training and the evaluations wrote.

    python training/training_pages.py            # docs/mini_models.md and docs/training/*.png

Reads training/logs/log-*.jsonl, training/ablation/*.json and the models' own eval.json and training.json; no number
of the page is typed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "pixelrefer_fast" / "assets"
PICTURES = ROOT / "docs" / "training"
PAGE = ROOT / "docs" / "mini_models.md"
MODELS = {"lite": "PixelRefer-Lite-mini", "full": "PixelRefer-mini"}
GOALS = {"name": 0.97, "color": 0.97, "pattern": 0.97, "description": 0.92}
OTHER_GOAL = 0.85
CATEGORIES = ("name", "color", "pattern", "description", "relation", "counting", "context", "motion", "selection")
ABLATIONS = (
    "unchanged",
    "1-token",
    "8-tokens",
    "16-tokens",
    "no-position",
    "mask-pooling",
    "no-local-attention",
    "no-global-attention",
    "no-attention",
)
INK, GRID = "#222222", "#dddddd"
COLORS = ("#1f6fb4", "#c44e52", "#3a923a", "#8c6bb1", "#d98b1f")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def in_a_row(pattern: str) -> list[dict[str, Any]]:
    """Entries of trainings that went on from each other, in the order of their names, with steps from the first on."""
    entries: list[dict[str, Any]] = []
    for path in sorted((ROOT / "training" / "logs").glob(pattern), key=lambda path: path.stem):
        begun = entries[-1]["step"] if entries else 0
        entries += [e | {"step": begun + e["step"]} for e in read_lines(path) if "loss" in e]
    return entries


def smooth(values: list[float], width: int = 9) -> list[float]:
    """Running mean over the values at hand."""
    half = width // 2
    parts = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def draw_curves() -> None:
    """Loss and accuracy of both models' stages, and what their parts learnt before."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"axes.edgecolor": INK, "axes.grid": True, "grid.color": GRID, "font.size": 10})
    PICTURES.mkdir(parents=True, exist_ok=True)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for color, (kind, name) in zip(COLORS, MODELS.items(), strict=False):
        entries = read_lines(ROOT / "training" / "logs" / f"log-{kind}.jsonl")
        steps, begun, last = [], 0, ("", 0)
        for entry in entries:
            if entry["stage"] != last[0]:
                begun += last[1]
                if last[0]:
                    left.axvline(begun, color=color, linewidth=0.6, linestyle=":")
            last = entry["stage"], entry["step"]
            steps.append(begun + entry["step"])
        left.plot(steps, smooth([e["loss"] for e in entries]), color=color, label=name)
        right.plot(steps, smooth([e["accuracy"] for e in entries]), color=color, label=name)
    left.set(xlabel="step (8 scenes each)", ylabel="loss of an answer's token", yscale="log")
    right.set(xlabel="step (8 scenes each)", ylabel="answer tokens foretold", ylim=(0, 1))
    right.legend(frameon=False, loc="lower right")
    figure.savefig(PICTURES / "stages.png", dpi=110)
    plt.close(figure)

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True, sharey=True)
    for axis, part, heads in (
        (axes[0], "close-ups", ("color", "shape", "pattern")),
        (axes[1], "views", ("shape", "size", "touched_color", "same_color", "same_shape")),
    ):
        entries = in_a_row(f"log-encoder-{part}*.jsonl")
        for color, head in zip(COLORS, heads, strict=False):
            values = smooth([e[f"accuracy/{head}"] for e in entries])
            axis.plot([e["step"] for e in entries], values, color=color, label=head.replace("_", " "))
        axis.set(xlabel="step", title=f"encoder, {part.replace('-', ' ')}", ylim=(0, 1))
        axis.legend(frameon=False, loc="lower right")
    axes[0].set_ylabel("patches told right")
    figure.savefig(PICTURES / "encoder.png", dpi=110)
    plt.close(figure)

    # of models whose language model was pretrained in symbols
    kinds = [kind for kind in MODELS if (ROOT / "training" / "logs" / f"log-language-{kind}.jsonl").is_file()]
    figure, axes = plt.subplots(1, len(kinds) + 1, figsize=(4.5 * (len(kinds) + 1), 4), constrained_layout=True)
    for axis, kind in zip(axes, kinds, strict=False):
        entries = in_a_row(f"log-language-{kind}*.jsonl")
        for color, category in zip(COLORS, ("relation", "counting", "context", "motion", "selection"), strict=True):
            values = smooth([e[f"accuracy/{category}"] for e in entries])
            axis.plot([e["step"] for e in entries], values, color=color, label=category)
        axis.set(xlabel="step", title=f"{MODELS[kind]}, language model", ylim=(0, 1))
    axes[0].set_ylabel("answer tokens foretold")
    axes[0].legend(frameon=False, loc="lower right")
    for color, kind in zip(COLORS, kinds, strict=False):
        entries = in_a_row(f"log-vision-{kind}.jsonl")
        values = smooth([e["accuracy/objects"] for e in entries])
        axes[-1].plot([e["step"] for e in entries], values, color=color, label=MODELS[kind])
    axes[-1].set(xlabel="step", title="alignment: facts in object tokens", ylim=(0, 1))
    axes[-1].legend(frameon=False, loc="lower right")
    figure.savefig(PICTURES / "parts.png", dpi=110)
    plt.close(figure)

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True, sharey=True)
    for axis, (kind, name) in zip(axes, MODELS.items(), strict=True):
        entries = in_a_row(f"log-refining-{kind}.jsonl")
        for color, head in zip(COLORS, ("answers", "shape", "size", "same_color", "same_shape"), strict=True):
            values = smooth([e[f"accuracy/{head}"] for e in entries])
            axis.plot([e["step"] for e in entries], values, color=color, label=head.replace("_", " "))
        axis.set(xlabel="step", title=f"{name}, refining", ylim=(0.4, 1))
    axes[0].set_ylabel("told right")
    axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(PICTURES / "refining.png", dpi=110)
    plt.close(figure)


def percent(entry: dict[str, Any] | None) -> str:
    return "-" if entry is None or not entry["n"] else f"{100 * entry['accuracy']:.1f}"


def accuracy_table() -> list[str]:
    """Per category both models, against the goals."""
    found = {kind: read(ASSETS / name / "eval.json")["categories"] for kind, name in MODELS.items()}
    lines = [
        "| category | goal | " + " | ".join(f"{MODELS[kind]} (of n)" for kind in found) + " |",
        "|---|---|" + "---|" * len(found),
    ]
    for category in CATEGORIES:
        goal = GOALS.get(category, OTHER_GOAL)
        cells = []
        for kind in found:
            entry = found[kind][category]
            reached = "" if entry["accuracy"] >= goal else ", below"
            cells.append(f"{percent(entry)} ({entry['n']}{reached})")
        lines.append(f"| {category} | {100 * goal:.0f} | " + " | ".join(cells) + " |")
    return lines


def ablation_table() -> list[str]:
    """Every variant that was run, per category."""
    lines = ["| variant | " + " | ".join(CATEGORIES) + " | mean |", "|---|" + "---|" * (len(CATEGORIES) + 1)]
    for name in ABLATIONS:
        path = ROOT / "training" / "ablation" / f"{name}.json"
        if not path.is_file():
            continue
        document = read(path)
        categories = document["categories"]
        mean = sum(categories[c]["accuracy"] for c in CATEGORIES) / len(CATEGORIES)
        tokens = f" ({document['tokens']} tokens)" if name == "unchanged" else ""
        cells = " | ".join(percent(categories[c]) for c in CATEGORIES)
        lines.append(f"| {document['variant']}{tokens} | {cells} | {100 * mean:.1f} |")
    return lines


def training_lines() -> list[str]:
    lines = []
    for name in MODELS.values():
        facts = read(ASSETS / name / "training.json")
        stages = ", ".join(f"{s['name']} {s['steps']} steps in {s['seconds'] / 60:.0f} min" for s in facts["stages"])
        lines.append(f"- {name}: {stages}; {facts['hardware']}, torch {facts['torch']}, seed {facts['seed']}.")
    return lines


def main() -> None:
    draw_curves()
    ablations = [read(p) for p in sorted((ROOT / "training" / "ablation").glob("*.json"))]
    page = [
        "# The embedded models: accuracy, training and ablations",
        "",
        "Made by `training/training_pages.py` from the files of the training and of `pixelrefer-fast eval --world`; do "
        "not edit.",
        "",
        "## Held-out questions",
        "Exact match in percent, on scenes of held-out seeds. About half of their objects combine shape, colour and",
        "pattern as no training scene does.",
        "",
        *accuracy_table(),
        "",
        "## Training",
        *training_lines(),
        "",
        "![loss and accuracy of the stages](training/stages.png)",
        "",
        "![what the encoder learnt in pretraining](training/encoder.png)",
        "",
        "![language models learning from symbols, and vision sides from the language models](training/parts.png)",
        "",
        "![accuracy of answers and of patches of whole images while the deeper models were refined]"
        "(training/refining.png)",
        "",
    ]
    if ablations:
        page += [
            "## Ablations of Lite",
            f"Each variant is trained for {ablations[0]['steps']} more steps without one part, and so is the unchanged",
            "model (`training/ablate.py`); accuracy on the same held-out questions, percent.",
            "",
            *ablation_table(),
            "",
        ]
    PAGE.write_text("\n".join(page), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
