"""Recorded behaviour of the reference, replayed stage by stage."""

from pixelrefer_fast.verify.replay import STAGES, Tolerances, verify

__all__ = ["STAGES", "Tolerances", "verify"]
