"""In which order the classes are the outputs of the network."""
