"""From a data folder to decoded images with labels."""
