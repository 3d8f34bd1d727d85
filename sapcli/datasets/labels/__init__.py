"""What says which image has which label: the files, and the numbers in them."""
