"""Scaled Activation Projection: repair a classifier checkpoint that was trained on mislabeled data."""

__version__ = "0.1.0"
