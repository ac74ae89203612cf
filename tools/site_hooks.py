"""What mkdocs is told besides mkdocs.yml: pages that lie outside docs/, links between all of them, and notebooks.

Nothing is copied in the repository: README.md, CONTRIBUTING.md and the like become pages as the site is built, and so
do notebooks, with the outputs that they were committed with.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.append(str(Path(__file__).parent))  # mkdocs runs this file by itself
from pages import OUTSIDE, ROOT, place

FILES = "files/"  # where files of the repository lie that a page links to
LINK = re.compile(r"(?<=\]\()[^)\s#]+(?=[)#])")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.M | re.S)


def shown_at(path: str) -> str | None:
    """Where a file of the repository is on the site; None for a folder, and for what does not exist."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if not (ROOT / path).is_file():
        return None
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return FILES + path


def links(text: str) -> list[re.Match[str]]:
    """The links of a page, but for those within code."""
    blank = CODE.sub(lambda code: " " * len(code[0]), text)
    return [link for link in LINK.finditer(blank) if "://" not in link[0]]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        files.remove(files.src_uris[f"notebooks/{notebook.name}"])
        for uri, content in rendered(notebook).items():
            files.append(File.generated(config, uri, content=content))
    for page in [*files.documentation_pages()]:
        for link in links(page.content_string):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(place(page.src_uri)), link[0]))
            uri = shown_at(path)
            if uri is not None and uri.startswith(FILES) and uri not in files.src_uris:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def rendered(notebook: Path) -> dict[str, str | bytes]:
    """A notebook as a page and its pictures."""
    from nbconvert import MarkdownExporter

    folder = f"{notebook.stem}_files"
    exporter = MarkdownExporter()
    text, resources = exporter.from_filename(str(notebook), {"output_files_dir": folder})
    return {
        f"notebooks/{notebook.stem}.md": text,
        **{f"notebooks/{name}": data for name, data in resources["outputs"].items()},
    }


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead from where a file lies in the repository lead from its page."""
    uri = page.file.src_uri
    folder = posixpath.dirname(place(uri))
    pieces, end = [], 0
    for link in links(markdown):
        target = shown_at(posixpath.normpath(posixpath.join(folder, link[0])))
        pieces.append(markdown[end : link.start()])
        pieces.append(link[0] if target is None else posixpath.relpath(target, posixpath.dirname(uri) or "."))
        end = link.end()
    return "".join([*pieces, markdown[end:]])
