"""What a process that computes for long chooses or sets once, at its start, and how it is asked to end."""

import ctypes
import functools
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from deformer.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """Let the C library reuse large freed buffers, which it would else return to the system and fault in again.

    On Linux with glibc blocked attention over 784 features takes about two thirds of the time. Does nothing elsewhere.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def choose_device(name: str) -> torch.device:
    """Turn "auto" into the best device there is.

    Raises:
        InputError: An unknown device, or one that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "cpu": True}  # MPS knows no float64, which units of data need
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name, False):
        raise InputError(f"Device {name!r} is not available; choose auto{''.join(f', {k}' for k in available)}.")
    return torch.device(name)


@functools.cache
def bfloat16_is_fast() -> bool:
    """Say whether this CPU multiplies matrices in bfloat16 well ahead of float32.

    Measured, in about 20 ms: among processors with the same instructions the ratio lies anywhere between 0.5 and 3.
    """
    return _seconds_of_product(torch.float32) > 1.3 * _seconds_of_product(torch.bfloat16)


def _seconds_of_product(dtype: torch.dtype) -> float:
    a, b = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def signals() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event, so that a step is never cut in two; a second one ends at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(kind) for kind in kinds]

    def give_back() -> None:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)

    def note(*_: Any) -> None:
        asked.set()
        give_back()

    for kind in kinds:
        signal.signal(kind, note)
    try:
        yield asked
    finally:
        give_back()
