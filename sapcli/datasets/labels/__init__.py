"""What says which image has which label: the files, the numbers in them, and the paths."""
