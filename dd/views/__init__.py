"""Augmentation of decoded images: DSA, crops, and the views of training on soft labels."""

from dd.views.crops import STRETCH, BoxDraw, draw_boxes, draw_patch, draw_shares, resized_crop, shuffled_tiles
from dd.views.view import Batches, View, ViewPolicy, draw_view

__all__ = [
    "STRETCH",
    "Batches",
    "BoxDraw",
    "View",
    "ViewPolicy",
    "draw_boxes",
    "draw_patch",
    "draw_shares",
    "draw_view",
    "resized_crop",
    "shuffled_tiles",
]
