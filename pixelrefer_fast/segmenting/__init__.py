"""Clicks, boxes and words -> masks: OpenCV's GrabCut without weights, SAM and its successors through transformers."""

from pixelrefer_fast.segmenting.choosing import load_segmenter, segment
from pixelrefer_fast.segmenting.marking import marked_by
from pixelrefer_fast.segmenting.segmenter import OpenedMedia, Segment, Segmenter

__all__ = ["OpenedMedia", "Segment", "Segmenter", "load_segmenter", "marked_by", "segment"]
