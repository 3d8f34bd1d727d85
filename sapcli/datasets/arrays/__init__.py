"""Arrays out of files that hold nothing else of interest: NumPy's own, pickles, PyTorch's; no code in them runs."""
