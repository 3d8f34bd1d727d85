"""Image classifiers of transformers: their networks, the names of their tensors, and their image processors."""
