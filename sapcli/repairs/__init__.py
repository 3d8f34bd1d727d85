"""The method: trusted samples, projections, the choice of alpha, and the evidence for what was done."""
