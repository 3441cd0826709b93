"""Knows how weights are found and kept; must not know who asks for them."""
