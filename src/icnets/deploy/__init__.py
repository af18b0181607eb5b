"""Shipping a network: IC units in their deployed form, batch norms folded, and artifacts for other engines."""
