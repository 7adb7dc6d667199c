"""Describing frames: engines, the loop over a split, results and feature stores."""
