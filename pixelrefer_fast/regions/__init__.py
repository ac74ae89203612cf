"""What the user marks: mask, RLE, polygon, box, scribble, outputs of segmenters -> `Region`."""

from pixelrefer_fast.regions.region import Region, as_regions

__all__ = ["Region", "as_regions"]
