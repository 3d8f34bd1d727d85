"""The command line that all commands share: options, settings files, inputs, outputs and the terminal."""
