"""A web page on the server: mark objects in a browser and ask about them (Gradio 6)."""

from pixelrefer_fast.page.app import create_page

__all__ = ["create_page"]
