"""Recorded behaviour of the reference, replayed stage by stage."""

from pixelrefer_fast.verify.replay import STAGES, Limits, verify

__all__ = ["STAGES", "Limits", "verify"]
