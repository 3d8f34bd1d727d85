"""From a checkpoint to a module and its preprocessing."""
