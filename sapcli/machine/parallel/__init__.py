"""Several processes on one run: each has a share of the images, the first alone writes and speaks."""
