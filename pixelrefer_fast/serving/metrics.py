"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Of one server; each has a registry of its own.

    Args:
        open_requests: their number now.
    """

    def __init__(self, open_requests: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "pixelrefer_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=registry
        )
        self.seconds = Histogram(
            "pixelrefer_request_seconds", "From a request to its last byte.", ["endpoint"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "pixelrefer_time_to_first_token_seconds", "Of streamed answers.", buckets=_SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("pixelrefer_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.cached_tokens = Counter("pixelrefer_cached_tokens", "Of them, from the KV cache.", registry=registry)
        self.answer_tokens = Counter("pixelrefer_answer_tokens", "Tokens of answers.", registry=registry)
        self._gauges: dict[str, Gauge] = {}
        gauge = Gauge("pixelrefer_open_requests", "Requests that wait or run.", registry=registry)
        gauge.set_function(open_requests)

    def gauge(self, name: str, text: str, value: Callable[[], float], model: str) -> None:
        """A number of a model that is read when it is asked for."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, text, ["model"], registry=self._registry)
        self._gauges[name].labels(model).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)
