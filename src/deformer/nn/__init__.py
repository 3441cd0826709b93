"""Knows how tokens become conditionals; must not know what they are asked for or how weights are found."""
