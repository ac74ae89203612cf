"""The page: what stands where, and who answers what a visitor does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from importlib.resources import files
from typing import Any

import gradio as gr

from pixelrefer_fast.page.answering import PageModel, told
from pixelrefer_fast.page.asked import PageAsk, as_curl, as_python, describing, read_question
from pixelrefer_fast.page.examples import Example
from pixelrefer_fast.page.view import answers_view, save_answers
from pixelrefer_fast.page.visit import Desk, Visit, failed
from pixelrefer_fast.serving.admission import Gate
from pixelrefer_fast.serving.errors import ApiError
from pixelrefer_fast.serving.limits import Limits

TOGETHER = 64
"""Events of all visitors that are worked on at one time; the models have queues of their own."""
VISITORS = 32
"""Whose pictures are kept; the one who came first is let go."""
KEPT_SECONDS = 24 * 3600
"""For which files of visitors stay."""
EMBEDDED_NOTE = (
    "The embedded models answer here. They were trained on a synthetic world of plain shapes, "
    "and know nothing of photographs."
)


def asset(name: str) -> str:
    """A file of the folder browser/."""
    return (files("pixelrefer_fast.page") / "browser" / name).read_text(encoding="utf-8")


class Page:
    """Of some models.

    Args:
        models: by the names that requests give them.
        desk: opens what visitors bring.
        limits, gate: the server's.
        examples: offered to begin with.
        embedded: whether the models are those that ship, which know nothing of photographs.
    """

    def __init__(
        self,
        models: Mapping[str, PageModel],
        desk: Desk,
        limits: Limits,
        gate: Gate,
        examples: Sequence[Example],
        embedded: bool,
    ) -> None:
        self._models = dict(models)
        self._desk = desk
        self._limits = limits
        self._gate = gate
        self._examples = list(examples)
        self._embedded = embedded

    def blocks(self) -> gr.Blocks:
        """Its components, and what happens."""
        with gr.Blocks(
            title="pixelrefer_fast", analytics_enabled=False, fill_width=True, delete_cache=(3600, KEPT_SECONDS)
        ) as page:
            visit = gr.State(None, time_to_live=KEPT_SECONDS)
            note = f"<p>{EMBEDDED_NOTE}</p>" if self._embedded else ""
            gr.HTML(f'<div class="pr-head"><h1>Mark objects and ask about them</h1>{note}</div>')
            offered = [{"path": one.source.path, "title": one.title} for one in self._examples]
            with gr.Row(equal_height=False):
                with gr.Column(scale=6, min_width=320):
                    marker = gr.HTML(
                        None, html_template='<div class="pr-marker"></div>', js_on_load=asset("marker.js"),
                        style=asset("marker.css"), body=asset("marker.html"), examples=offered, elem_id="marker",
                        apply_default_css=False,
                    )  # fmt: skip
                with gr.Column(scale=5, min_width=320):
                    question = gr.Textbox(
                        label="Question", info="#0 stands for the first object; without a number it is about all.",
                        placeholder="What color is #0?", elem_id="question", max_length=2000, lines=1, submit_btn=False,
                    )  # fmt: skip
                    names = list(self._models)
                    asked = gr.CheckboxGroup(
                        names, value=names, label="Models", visible=len(names) > 1, elem_id="models"
                    )
                    with gr.Row():
                        ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=90)
                        describe = gr.Button("Describe", elem_id="describe", min_width=90)
                        stop = gr.Button("Stop", elem_id="stop", min_width=70)
                    shown = gr.HTML(answers_view([], None), elem_id="answers", apply_default_css=False)
                    download = gr.Button("Download the picture", elem_id="picture")
                    code: dict[str, Any] = {
                        "show_label": False,
                        "wrap_lines": True,
                        "lines": 1,
                        "show_line_numbers": False,
                    }
                    file = gr.DownloadButton(visible="hidden", elem_id="file")
                    with gr.Accordion("The same as a request", open=False, elem_id="request"), gr.Tabs():
                        with gr.Tab("curl"):
                            curl = gr.Code(language="shell", elem_id="curl", **code)
                        with gr.Tab("Python"):
                            python = gr.Code(language="python", elem_id="python", **code)
            quiet = {"api_visibility": "private", "show_progress": "hidden"}
            together = quiet | {"trigger_mode": "multiple"}
            marker.act(self._act, visit, [visit, marker, shown, question], **together)
            said = [shown, curl, python, marker]
            asking = [
                gr.on([ask.click, question.submit], self._ask, [visit, question, asked], said, **quiet),
                describe.click(self._describe, [visit, asked], said, **quiet),
            ]
            stop.click(None, None, None, cancels=asking, **quiet)
            download.click(self._save, visit, file, **quiet).success(
                None, None, None, js="() => document.querySelector('#file')?.click()", **quiet
            )
        page.queue(default_concurrency_limit=TOGETHER)
        page.state_session_capacity = VISITORS
        return page

    def _act(self, visit: Visit | None, event: gr.EventData) -> tuple[Any, ...]:
        """What a visitor does to the picture; only another picture changes more than it."""
        visit = visit or Visit()
        given = event._data if isinstance(event._data, dict) else {}
        what = str(given.get("do"))
        number: Any = given.get("number")
        question = gr.skip()
        if what == "file":
            value = self._desk.open_file(visit, given.get("path"), given.get("name"))
        elif what == "example" and number in range(len(self._examples)):
            example = self._examples[number]
            value, question = self._desk.open_example(visit, example.file, example.source), example.question
        else:
            return visit, self._desk.step(visit, what, given), gr.skip(), gr.skip()
        return visit, value, gr.skip() if value["bad"] else answers_view([], None), question

    async def _describe(
        self, visit: Visit | None, names: list[str], request: gr.Request
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        async with aclosing(self._ask(visit, None, names, request)) as answers:
            async for shown in answers:
                yield shown

    async def _ask(
        self, visit: Visit | None, question: str | None, names: list[str], request: gr.Request
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """Answers as they grow, the request that asks the same, and why there are none."""
        visit = visit or Visit()
        try:
            board = visit.opened()
            ask = describing(board) if question is None else read_question(question, board)
            models = {name: model for name, model in self._models.items() if name in names}
            if not models:
                raise ValueError("models: expected one to ask, got none")
            visit.ask, visit.answered = ask, board.objects
            texts = self._requests(visit, ask, next(iter(models)), request)
            with self._gate.admitted(len(models) * (len(ask.objects) if ask.text is None else 1)):
                most = min(512, self._limits.tokens)
                async for visit.told in told(models, board, ask, most, self._limits.seconds):
                    yield answers_view(visit.told, ask), *texts, gr.skip()
        except (ValueError, ApiError) as error:
            yield gr.skip(), gr.skip(), gr.skip(), visit.tell(str(error))
        except Exception as error:  # of a model: what has been said stays
            yield gr.skip(), gr.skip(), gr.skip(), visit.tell(failed(error))

    def _requests(self, visit: Visit, ask: PageAsk, name: str, request: gr.Request) -> tuple[str, str]:
        address = f"{request.request.url.scheme}://{request.headers.get('host', '127.0.0.1')}"
        kind = self._models[name].kind
        board, source = visit.opened(), visit.source
        return (
            as_curl(ask, board, source, address, name, kind),
            as_python(ask, board, source, address, name, kind),
        )

    def _save(self, visit: Visit | None) -> str:
        visit = visit or Visit()
        try:
            board = visit.opened()
            ask = visit.ask if visit.answered is board.objects else None  # answers belong to what was marked then
            return str(save_answers(board, visit.told, ask, self._desk.folder() / "marked.png"))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
