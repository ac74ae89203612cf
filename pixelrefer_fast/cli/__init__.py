"""The command `pixelrefer-fast`."""

from pixelrefer_fast.cli.entry import main

__all__ = ["main"]
