"""A fair adapter for the reference's own code, which is imported from a checkout given by its user."""

from pixelrefer_fast.bench.reference.checkout import find_package, recorded_permutations
from pixelrefer_fast.bench.reference.parts import RegionStage
from pixelrefer_fast.bench.reference.whole import Reference, with_released_views

__all__ = ["Reference", "RegionStage", "find_package", "recorded_permutations", "with_released_views"]
