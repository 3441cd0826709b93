"""Knows people and their files; must not hold any mathematics."""
