"""What is installed here, what computes what, and why not; needs nothing but the standard library."""

from pixelrefer_fast.doctor.probes import build, main, report

__all__ = ["build", "main", "report"]
