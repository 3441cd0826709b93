"""Generators from a seed and counters, so that any step of a run can be drawn again on its own."""

import zlib

import numpy as np
import torch


def derive(seed: int, *counters: int | str) -> int:
    """Give the seed of what a path of counters names, unrelated to that of any other path or seed."""
    words = [zlib.crc32(c.encode()) if isinstance(c, str) else c for c in counters]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def derive_of_piece(seed: int, start: int, number: int = 0) -> int:
    """Give each piece of a table, and each of several draws of it, a seed; the first draw of the first piece `seed`."""
    return derive(seed, "piece", start, number) if start or number else seed


def generator(seed: int, *counters: int | str) -> torch.Generator:
    """Make the random generator for a seed and a path of counters.

    Examples:
        >>> a, b = generator(0, "orders", 7), generator(0, "orders", 7)
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    return torch.Generator().manual_seed(derive(seed, *counters))
