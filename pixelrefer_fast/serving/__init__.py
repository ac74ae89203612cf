"""An OpenAI-style server: requests with images, videos and regions over HTTP, answered by one queue for each model."""

from pixelrefer_fast.serving.app import create_app
from pixelrefer_fast.serving.limits import Limits

__all__ = ["Limits", "create_app"]
