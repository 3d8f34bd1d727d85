"""The commands, one file each, called like the command."""
