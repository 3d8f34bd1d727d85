"""The commands around a repair, which open no checkpoint."""
