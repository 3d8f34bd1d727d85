"""What a network makes of images, found again between runs."""
