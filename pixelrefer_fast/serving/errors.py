"""What goes wrong, in the form that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every response has whose status is 400 or more."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What the caller should do otherwise."},
    "5XX": {"model": ErrorBody, "description": "What the server could not do."},
}


class ApiError(Exception):
    """Ends a request.

    Args:
        status: of HTTP.
        message: for the client; no path of this machine in it.
        param: the part of the request that is at fault, if one is.
        headers: of the response.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = headers

    def body(self) -> dict[str, object]:
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


@contextmanager
def bad_input(param: str | None = None) -> Iterator[None]:
    """A ValueError of the library is the caller's fault: 400."""
    try:
        yield
    except ValueError as error:
        raise ApiError(400, str(error), param) from None
