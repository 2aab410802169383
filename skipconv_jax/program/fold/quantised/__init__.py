"""Quantised networks in the folded graph: nodes on bytes, how they are found and evaluated."""
