"""What a server is and how it does: /v1/models, /health, /ready, /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pixelrefer_fast.serving.errors import ApiError
from pixelrefer_fast.serving.state import state_of

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, object]:
    """The models that requests may name."""
    state = state_of(request)
    head = {"object": "model", "created": state.created, "owned_by": "pixelrefer_fast"}
    return {"object": "list", "data": [{"id": name, **head} for name in state.models]}


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """Whether a request would be taken now; else 503."""
    gate = state_of(request).gate
    if gate.full:
        raise ApiError(503, f"server: expected room for a request, got {gate.open} open ones")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(state_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
