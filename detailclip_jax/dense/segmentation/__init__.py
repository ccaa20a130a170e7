"""Semantic segmentation on the features of any image encoder: taps, heads, loss, inference and metrics.

The encoder is a feature function to the heads (`taps`); `segmentation_heads` has these.  See docs/segmentation.md.
"""
