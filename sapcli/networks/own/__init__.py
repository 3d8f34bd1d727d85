"""The user's own code: its modules, found, executed and kept apart."""
