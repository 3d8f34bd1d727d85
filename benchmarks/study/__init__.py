"""What a repair gains: over kinds and rates of noise, networks, ways of training, and beside other methods."""
