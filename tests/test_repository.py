"""What a repository's host reads: citation, issue forms, the workflow; and nothing large without a reason."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import pixelrefer_fast

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_is_the_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert paper["url"].endswith("2510.23603")
    assert len(paper["authors"]) == 9


def test_one_version_everywhere() -> None:
    """It is written in `_version.py`, where builds read it; who cites it and what changed in it say the same."""
    version = pixelrefer_fast.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## (\d\S*) \((\d{4}-\d\d-\d\d)\)$", changes, re.M)
    assert released[0] == (version, str(citation["date-released"]))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_ask_for_doctor(form: Path) -> None:
    fields = {field["id"]: field for field in yaml.safe_load(form.read_text(encoding="utf-8"))["body"]}
    assert "pixelrefer-fast doctor" in fields["doctor"]["attributes"]["label"]
    assert fields["doctor"]["validations"] == {"required": True}


def test_the_workflow_runs_what_ci_runs() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(text)["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


LARGE = {  # files over 1 MiB, each with what it is for
    "pixelrefer_fast/assets/PixelRefer-Lite-mini/model.safetensors": "the embedded Lite, which works offline",
    "pixelrefer_fast/assets/PixelRefer-mini/model.safetensors": "the embedded Full",
    "pixelrefer_fast/assets/lite/case_image_one.safetensors": "the recorded case that `verify` replays anywhere",
    "tests/data/cases/full/case_video.safetensors": "Full's one recorded video: frames, merging, a marked frame",
    "tests/data/cases/lite/case_empty_first.safetensors": "a first object without a pixel, as the reference takes it",
    "tests/data/cases/lite/case_two_images_reversed.safetensors": "two images whose objects come in another order",
}
MEBIBYTE = 1 << 20


def test_large_files_are_few_and_each_has_a_reason() -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [name for name in names.split("\0") if name and (ROOT / name).is_file() and not (ROOT / name).is_symlink()]
    assert sorted(name for name in files if (ROOT / name).stat().st_size > MEBIBYTE) == sorted(LARGE)
    told = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    assert [name for name in LARGE if "/".join(Path(name).parts[-2:]) not in told] == []
