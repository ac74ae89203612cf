"""Run the notebooks of docs/notebooks/, each in a kernel of its own; what they assert must hold.

python tools/notebooks.py [NAME ...]      # all, or these
python tools/notebooks.py --update        # and keep what comes out in the files
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
SECONDS = 240  # for one cell
LARGEST = 300_000  # bytes of a notebook with its outputs
WIDE = 640  # pixels of a picture


def run(path: Path) -> nbformat.NotebookNode:
    """A notebook with what came out, and nothing in it that another run would have otherwise.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=SECONDS, startup_timeout=SECONDS, resources=where).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":  # what is said on stderr depends on the machine: fallbacks, widgets
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data = small(output.data["image/png"])
    return notebook


def small(png: str) -> dict[str, str]:
    """A picture for a page, in base64 by its type: as wide as a page, a JPEG where that is smaller."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((WIDE, WIDE))
    kinds = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 65})):
        data = io.BytesIO()
        picture.save(data, kind, **options)
        kinds[f"image/{kind}"] = base64.b64encode(data.getvalue()).decode()
    kind = min(kinds, key=lambda kind: len(kinds[kind]))
    return {kind: kinds[kind]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of notebooks (default: all)")
    parser.add_argument("--update", action="store_true", help="write the outputs into the notebooks")
    options = parser.parse_args()
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    paths = sorted(FOLDER.glob("*.ipynb"))
    chosen = [path for path in paths if not options.names or path.stem in options.names]
    failed = 0
    for path in chosen:
        begun = time.perf_counter()
        try:
            text = nbformat.writes(run(path)) + "\n"
        except CellExecutionError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            failed += 1
            continue
        if len(text.encode()) > LARGEST:
            print(f"{path.name}: expected at most {LARGEST} bytes with outputs, got {len(text)}", file=sys.stderr)
            failed += 1
        elif options.update:
            path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {time.perf_counter() - begun:.0f} s, {len(text) // 1000} kB", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
