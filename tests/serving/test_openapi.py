"""Requests made from our own OpenAPI document, right and wrong ones, by schemathesis: each is answered as it says."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pixelrefer_fast.serving import Limits, create_app

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SETTINGS = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
READ = ("/v1/models", "/health", "/ready", "/metrics")
ASKED = ("/v1/chat/completions", "/v1/regions", "/v1/segment", "/v1/encode")
MODES = [*((path, "positive") for path in (*READ, *ASKED)), *((path, "negative") for path in ASKED)]


@pytest.fixture(scope="module")
def operations(lite: Any) -> dict[str, Any]:
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app({"lite": lite}, Limits(tokens=4)))
    return {found.ok().path: found.ok() for found in schema.get_all_operations()}


def test_every_endpoint_is_described(operations: dict[str, Any]) -> None:
    assert set(operations) == {*READ, *ASKED}


@pytest.mark.parametrize(("path", "mode"), MODES)
def test_answers_are_those_that_are_described(operations: dict[str, Any], path: str, mode: str) -> None:
    cases = operations[path].as_strategy(generation_mode=schemathesis.GenerationMode(mode))
    statuses = set()

    @given(case=cases)
    @settings(SETTINGS)
    def check(case: Any) -> None:
        statuses.add(case.call_and_validate(checks=CHECKS).status_code)

    check()
    assert statuses
    if mode == "negative":
        assert statuses <= {400, 404}
