"""The machine under the program: device, memory, signals, files, cache, worker processes, progress and text."""
