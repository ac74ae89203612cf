"""Released and own checkpoints in and out."""

from pixelrefer_fast.checkpoint.folder import Checkpoint, open_checkpoint, save_checkpoint

__all__ = ["Checkpoint", "open_checkpoint", "save_checkpoint"]
