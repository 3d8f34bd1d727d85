"""What runs through a network: the rows that each weight multiplies, their bases, and what comes out."""
