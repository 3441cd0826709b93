"""What a value costs that arrives alone: `python -m benchmarks.stream [--quick]`.

The n-th observation of a session against scoring the whole prefix again, and observations per second for one session
and for many at once. The default model on 28 x 28 binary images; its weights do not matter to the time.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.machine import circumstances, run, seconds
from deformer import Binary, DEformer, Session, SessionPool, generator, image_schema, log_prob


def growth(model: DEformer, lengths: tuple[int, ...], runs: int, in_a_row: int) -> dict[str, Any]:
    """Time the last observations of n that arrive one after the other, and a pass over all n, in turn."""
    n_features, names = len(model.schema), model.schema.names
    order = torch.randperm(n_features, generator=generator(0))
    row = (torch.rand(1, n_features, generator=generator(1)) < 0.13).float()
    results = {}
    for n in lengths:
        told, new = order[: n - in_a_row], order[n - in_a_row : n].tolist()
        before = {"features": told.tolist(), "codes": row[0, told].tolist(), "running_nats": 0.0, "expected_nats": 0.0}
        pairs = []
        for _ in range(runs):
            session = Session(model)
            session.restore(before)
            times = [seconds(lambda i=i, s=session: s.observe(names[i], float(row[0, i]))) for i in new]
            pairs.append((median(times), seconds(lambda n=n: log_prob(model, row, orders=order[:n]))))
        one, again = (1000 * median(times) for times in zip(*pairs, strict=True))
        ratio = median(whole / single for single, whole in pairs)
        results[str(n)] = {"observation_ms": one, "prefix_ms": again, "ratio": ratio}
    return results


def by_threads(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure on one thread, as a service with a process per core would run, and on all threads."""
    most, results = torch.get_num_threads(), {}
    for n in sorted({1, most}):
        torch.set_num_threads(n)
        results[str(n)] = measure()
    return results


def throughput(model: DEformer, n_sessions: int, n_values: int) -> dict[str, float]:
    """Count observations per second, one value for every session at a time, from the start of the rows."""
    pool = SessionPool(model, memory=2**33)
    for name in range(n_sessions):
        pool.open(name)
    draws = generator(2)
    features = torch.rand(n_sessions, len(model.schema), generator=draws).argsort(-1)[:, :n_values]
    names = model.schema.names

    def all_values() -> None:
        for k in range(n_values):
            pool.observe([(s, names[f], 0.0) for s, f in enumerate(features[:, k].tolist())])

    took = seconds(all_values)
    return {"sessions": n_sessions, "values": n_values, "observations_per_second": n_sessions * n_values / took}


def measure(quick: bool) -> dict[str, Any]:
    """Measure everything; quick is a toy size that shows that the code runs."""
    side = 4 if quick else 28
    model = DEformer(image_schema(side, side, Binary())).eval()
    lengths = (4, 16) if quick else (100, 400, 784)
    one = throughput(model, 1, 8 if quick else 100)
    many = throughput(model, 10 if quick else 1000, 4 if quick else 100)
    return {
        "growth_by_threads": by_threads(lambda: growth(model, lengths, 1 if quick else 9, 3 if quick else 8)),
        "one_session": one,
        "many_sessions": many,
        "batched_ratio": many["observations_per_second"] / one["observations_per_second"],
        "machine": circumstances(),
    }


if __name__ == "__main__":
    run(__doc__, "stream", measure)
