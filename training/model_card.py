"""Model cards of the embedded models: README.md in each one's folder, from what is in that folder.

    python training/model_card.py [FOLDER ...]    # default: both in pixelrefer_fast/assets/

Reads training.json and eval.json (of training/train_mini.py), config.json and model.safetensors; no number of a card is
typed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pixelrefer_fast.checkpoint.embedded import TITLES
from pixelrefer_fast.world.composed import COMPOSED
from pixelrefer_fast.world.questions import CATEGORIES
from pixelrefer_fast.world.spoken import SPOKEN
from pixelrefer_fast.world.wordings import PLAIN

ASSETS = Path(__file__).resolve().parents[1] / "pixelrefer_fast" / "assets"
CARD = "README.md"
WHAT = {
    "lite": "Object-Only: the language model sees the question and four tokens for each marked object and frame, into "
    "which the object's surroundings and the whole picture have been infused.",
    "full": "Vision-Object: the language model sees the question, the vision tokens of the whole image or of frames of "
    "the video, and four tokens for each marked object.",
}


def card(folder: Path) -> str:
    """The card of the model in a folder.

    Raises:
        ValueError: a file that is needed is not there, or holds no JSON.
    """
    config, training, results = (_read(folder / f"{name}.json") for name in ("config", "training", "eval"))
    kind = "lite" if "lite" in config["model_type"] else "full"
    size = (folder / "model.safetensors").stat().st_size
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (no mapping)
    parameters = sum(_product(shape) for shape in shapes)
    parts = [
        "---\nlicense: apache-2.0\nlanguage: en\nlibrary_name: pixelrefer-fast\n---",
        f"# {training['name']}",
        f"A small {'PixelRefer-Lite' if kind == 'lite' else 'PixelRefer'}, trained from scratch on a synthetic world "
        "of plain shapes, so that the library can be tried and tested without a download. It has the architecture and "
        f"the file layout of the released checkpoints, and ships inside `pixelrefer_fast` as `embedded:{kind}`.\n\n"
        f"{WHAT[kind]}",
        _usage(kind),
        "## Sizes\n" + _table(("what", "size"), _sizes(config, size, parameters)),
        _data(),
        _training(training, kind),
        "## Results\n" + _results(results),
        "## Limits\n- It knows only this world: ten shapes, ten colours, three patterns and sizes on drawn "
        f"backgrounds of 112 to 196 pixels, in English, in {_wordings()} wordings and in what is near them "
        "(`docs/wordings.md`). Its answers about photographs, to other questions or in other languages are "
        "meaningless.\n"
        f"{_weak(results)}"
        "- Asked about one of several objects by its name (`<object2>`), it often answers about another: mark the one "
        "in question alone.\n"
        "- Its answers are short. It says `unknown` to some questions that a picture cannot answer, such as what an "
        "object costs; to others it answers all the same.\n"
        "- Its results say nothing about PixelRefer's method or its released checkpoints.",
        "## Licence\nApache-2.0, weights and tokenizer. All data were drawn by the generator in this package; no "
        "third-party weights or texts were used.",
    ]
    return "\n\n".join(parts) + "\n"


def _weak(results: dict[str, Any]) -> str:
    """The categories in which most answers are wrong, in words."""
    found = results["categories"]
    weak = [c for c in CATEGORIES if c in found and found[c]["accuracy"] < 0.5]
    if not weak:
        return ""
    names = " and ".join(filter(None, (", ".join(weak[:-1]), weak[-1])))
    return f"- Most of its answers about {names} are wrong: its training was too short for them.\n"


def _wordings() -> int:
    return len({wording for own in (*PLAIN.values(), *SPOKEN.values(), *COMPOSED.values()) for wording in own})


def _usage(kind: str) -> str:
    name = "" if kind == "lite" else '"embedded:full"'
    return f"""```python
import pixelrefer_fast as pf
from pixelrefer_fast.world import make_scene

model = pf.load({name})
scene = make_scene(7, "heldout", video=False)
model.describe(scene.frames[0], [mask[0] for mask in scene.masks])
```"""


def _sizes(config: dict[str, Any], size: int, parameters: int) -> list[tuple[str, str]]:
    return [
        ("parameters", f"{parameters:,}"),
        ("model.safetensors", f"{size / 1e6:.2f} MB, {config.get('torch_dtype', 'bfloat16')}"),
        ("language model", f"Qwen2, {config['num_hidden_layers']} layers of width {config['hidden_size']}"),
        ("vocabulary", f"{config['vocab_size']}, its own byte-level BPE"),
        ("tokens of a marked object", f"{config['mask_num']} in each frame that marks it"),
        ("side of the context views", f"{config['local_view_size']} and {config['global_view_size']} pixels"),
    ]


def _data() -> str:
    return (
        "## Data\nScenes and questions of `pixelrefer_fast.world`, drawn from seeds while training: images and videos "
        "of 4 to 6 frames with 2 to 6 objects, exact masks, and questions about name, colour, pattern, full "
        "description, relations, counting, context, motion and selection. About an eighth of "
        "the combinations of shape, colour and pattern occur in no training scene. At last the language model learnt "
        "to understand the same questions as people ask them: two thirds of the wordings of `world/spoken.py`, those "
        "that `world/composed.py` puts together, and spellings of every kind. No data set, photograph or pretrained "
        "weight was used."
    )


def _training(training: dict[str, Any], kind: str) -> str:
    rows = [(name, str(part["steps"]), "", "", "") for name, part in training["pretraining"].items()]
    for stage in training["stages"]:
        rows.append(
            (
                stage["name"],
                str(stage["steps"]),
                _number(stage.get("loss"), "{:.3f}"),
                _number(stage.get("accuracy"), "{:.1%}"),
                _number(stage.get("seconds"), "{:.0f}"),
            )
        )
    return (
        "## Training\n"
        + _table(("stage", "steps", "last loss", "right answer tokens", "seconds"), rows)
        + f"\n\nSeed {training['seed']}, torch {training['torch']}, {training['hardware']}, from commit "
        f"`{training['commit'][:12] or 'unknown'}`. `make mini` trains both models again; the settings of this one "
        f"are in `training/train_mini.py` and `training/configs/*-{kind}.yaml`, and `docs/mini_models.md` has the "
        "curves and ablations."
    )


def _results(results: dict[str, Any]) -> str:
    rows = []
    for name in CATEGORIES:
        if name in results["categories"]:
            scores = [results[part].get(name) for part in ("categories", "images", "videos", "unseen")]
            rows.append((name, str(results["categories"][name]["n"]), *map(_percent, scores)))
    rows.append(("all", str(results["questions"]), f"{results['accuracy']:.1%}", "", "", ""))
    return (
        f"Accuracy on {results['questions']} questions about scenes of the {results['split']} split, by exact "
        "match after normalisation (`pixelrefer-fast eval --world` asks such questions). *Unseen*: questions about at "
        "least one object whose combination of shape, colour and pattern occurs in no training scene.\n\n"
        + _table(("category", "questions", "right", "images", "videos", "unseen"), rows)
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(score: dict[str, Any] | None) -> str:
    return "" if score is None else f"{score['accuracy']:.1%}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _product(shape: list[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a JSON file of the training, got {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[ASSETS / title for title in TITLES.values()])
    for folder in parser.parse_args().folders:
        try:
            text = card(folder)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        (folder / CARD).write_text(text, encoding="utf-8")
        print(f"{folder / CARD}: written")


if __name__ == "__main__":
    main()
