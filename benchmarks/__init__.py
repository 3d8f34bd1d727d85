"""Measurements of the whole, run by hand or by `make`; none of it is part of the package."""
