"""Knows features, rows, orders and where data sets live; must not know that networks exist."""
