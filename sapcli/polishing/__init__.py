"""Polishing: a few epochs of training on the noisy data, from a repaired model, and whether it was worth it."""
