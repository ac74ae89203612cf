"""A question as a person writes it -> what each model is asked, and the same as a request to the server."""

from __future__ import annotations

import json
import mimetypes
import re
import shlex
from dataclasses import dataclass
from typing import Any

from pixelrefer_fast.batching.preparing import DESCRIBE_IMAGE, DESCRIBE_VIDEO, named_objects
from pixelrefer_fast.checks.values import shown
from pixelrefer_fast.media import Video
from pixelrefer_fast.page.board import Board
from pixelrefer_fast.planning.request import REGION_TAG
from pixelrefer_fast.regions import Region

MOST_CHARACTERS = 2000
_NUMBER = re.compile(r"#(\d{1,4})\b")


@dataclass(frozen=True)
class PageAsk:
    """What a person asks about a board.

    Attributes:
        text: with a `<region>` for each of `objects`; without any, where it is about all of them. None: describe each.
        objects: numbers of the objects, in the order of the tags.
    """

    text: str | None
    objects: tuple[int, ...]

    def questions(self, board: Board, kind: str) -> list[tuple[str, list[Region]]]:
        """What a model of this kind is asked: a text, and the regions that its tags stand for."""
        regions = board.regions(kind)
        video = isinstance(board.media, Video)
        if self.text is None:
            return [(DESCRIBE_VIDEO if video else DESCRIBE_IMAGE, [regions[number]]) for number in self.objects]
        text = self.text if REGION_TAG in self.text else named_objects(self.text, len(self.objects), video)
        return [(text, [regions[number] for number in self.objects])]


def read_question(text: str, board: Board) -> PageAsk:
    """A question in which `#1` stands for the object of that number, or `<region>` for each in turn; or naming none.

    Raises:
        ValueError: naming the question, what was expected and what came.
    """
    text = text.strip()
    if not text:
        raise ValueError("question: expected one, got none; or let the objects be described")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"question: expected at most {MOST_CHARACTERS} characters, got {len(text)}")
    everything = tuple(range(len(board.objects)))
    if not everything:
        raise ValueError("question: expected a marked object that it is about, got none")
    named = [int(number) for number in _NUMBER.findall(text)]
    tags = text.count(REGION_TAG)
    if named and tags:
        raise ValueError(f"question: expected objects named by # or by {REGION_TAG}, got both")
    for number in named:
        if number not in everything:
            raise ValueError(f"question: expected #0 to #{len(everything) - 1}, got #{number}")
    if named:
        return PageAsk(_NUMBER.sub(REGION_TAG, text), tuple(named))
    if tags > len(everything):
        raise ValueError(f"question: expected at most {len(everything)} {REGION_TAG}, got {tags} in {shown(text)}")
    return PageAsk(text, everything[:tags] if tags else everything)


def describing(board: Board) -> PageAsk:
    """Describe each object.

    Raises:
        ValueError: none is marked.
    """
    if not board.objects:
        raise ValueError("describe: expected a marked object, got none")
    return PageAsk(None, tuple(range(len(board.objects))))


@dataclass(frozen=True)
class PageFile:
    """The file of an image or a video.

    Attributes:
        name: of the file.
        path: where this server offers it, below its address; None: it is the person's own.
    """

    name: str
    path: str | None = None

    @property
    def media_type(self) -> str:
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"


def _request(ask: PageAsk, board: Board, model: str, kind: str, url: str) -> tuple[str, dict[str, Any]]:
    """The endpoint and the body; `url` stands for the data."""
    video = isinstance(board.media, Video)
    given = board.given(kind)
    regions = [given[number] for number in ask.objects]
    if ask.text is None:
        return "/regions", {"model": model, "video" if video else "image": url, "regions": regions}
    part = "video_url" if video else "image_url"
    content = [{"type": part, part: {"url": url}, "regions": regions}, {"type": "text", "text": ask.text}]
    return "/chat/completions", {"model": model, "messages": [{"role": "user", "content": content}]}


_URL = "@URL@"
_QUOTED = f'"{_URL}"'


def as_curl(ask: PageAsk, board: Board, source: PageFile, address: str, model: str, kind: str) -> str:
    """The request as commands of a shell; `address` is the server's, such as http://127.0.0.1:7860."""
    endpoint, body = _request(ask, board, model, kind, _URL)
    text = _written(body)
    # what a shell changes in a here-document; in JSON only strings hold it, and there each may be written so
    for changed, code in (("\\\\", "005c"), ("$", "0024"), ("`", "0060")):
        text = text.replace(changed, "\\u" + code)
    file = shlex.quote(source.name)
    data = f"data:{source.media_type};base64,$(base64 < {file} | tr -d '\\n')"
    lines = [] if source.path is None else [f"curl -s -o {file} {shlex.quote(address + source.path)}"]
    lines += [f"curl -s {shlex.quote(address + '/v1' + endpoint)} --json @- << END", text.replace(_URL, data, 1), "END"]
    return "\n".join(lines) + "\n"


def as_python(ask: PageAsk, board: Board, source: PageFile, address: str, model: str, kind: str) -> str:
    """The request as a program with the official client."""
    endpoint, body = _request(ask, board, model, kind, _URL)
    lines = ["import base64", "import urllib.request"] if source.path is not None else ["import base64"]
    lines += ["", "import openai", ""]
    if source.path is not None:
        lines.append(f"urllib.request.urlretrieve({address + source.path!r}, {source.name!r})")
    lines += [
        f"with open({source.name!r}, 'rb') as file:",
        f"    url = 'data:{source.media_type};base64,' + base64.b64encode(file.read()).decode()",
        f"client = openai.OpenAI(base_url={address + '/v1'!r}, api_key='none')",
    ]
    if ask.text is None:
        lines += [
            f"body = {_written(body).replace(_QUOTED, 'url', 1)}",
            f"found = client.post({endpoint!r}, body=body, cast_to=object)",
            "for one in found['data']:",
            "    print(one['text'] or one['error'])",
        ]
    else:
        lines += [
            f"messages = {_written(body['messages']).replace(_QUOTED, 'url', 1)}",
            f"answer = client.chat.completions.create(model={model!r}, messages=messages)",
            "print(answer.choices[0].message.content)",
        ]
    return "\n".join(lines) + "\n"


def _written(value: Any) -> str:
    """As JSON with a part of the content a line, which Python reads alike: there are strings, numbers and lists alone.

    Quotation marks within strings are escaped, so that nothing of them is taken for a key.
    """
    text = json.dumps(value, ensure_ascii=False)
    for opening in ('"messages": ', '{"type": "text"', '"regions": '):
        text = text.replace(opening, "\n  " + opening)
    return text
