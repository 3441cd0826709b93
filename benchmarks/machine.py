"""What a result was measured on, and whether it counts."""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from deformer.train.checkpoint import write_bytes
from deformer.train.process import keep_memory

RESULTS = Path(__file__).parent / "results"


def _git(*words: str) -> str:
    asked = subprocess.run(["git", *words], cwd=RESULTS.parent.parent, capture_output=True, text=True, check=False)
    return asked.stdout.strip()


# The code that is imported now, not what is committed while it runs.
COMMIT = _git("rev-parse", "--short", "HEAD") + "-dirty" * bool(_git("status", "--porcelain", "src", "benchmarks/*.py"))


def circumstances() -> dict[str, Any]:
    """Give commit, versions, processor and threads."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return {
        "commit": COMMIT,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "bfloat16_tiles": torch.cpu._is_amx_tile_supported(),
    }


def counted(path: Path, required: dict[str, Any]) -> dict[str, Any] | None:
    """Read a result, if it is there and does not say that it was measured with anything else than what is required."""
    result: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return result if result is not None and result.get("wanted", required) == required else None


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    write_bytes(path, (json.dumps(result, indent=2) + "\n").encode())


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def paired(ours: Callable[[], object], theirs: Callable[[], object], n: int) -> tuple[float, float, float]:
    """Time two calls in turn and give both medians and the median of theirs / ours."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(n)]
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(b / a for a, b in pairs)


def matmul_rate(dtype: torch.dtype) -> float:
    """Measure the machine's matrix products: the best of a few shapes, in operations per second."""
    best = 0.0
    for m, k, n in ((2048, 2048, 2048), (9408, 128, 512), (9408, 512, 128), (1568, 512, 2048)):
        a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        times = [seconds(lambda a=a, b=b: a @ b) for _ in range(12)]
        best = max(best, 2 * m * k * n / min(times))
    return best


def run(description: str | None, name: str, measure: Callable[[bool], dict[str, Any]]) -> None:
    """Measure as the command line asks, print the result and, unless it is of a toy size, keep it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a toy size; writes no result")
    quick = parser.parse_args().quick
    keep_memory()
    results = measure(quick)
    print(json.dumps(results, indent=2))
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
