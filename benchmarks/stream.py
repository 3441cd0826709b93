"""What a value costs that arrives alone: `python -m benchmarks.stream [--quick]`.

The n-th observation of a session against scoring the whole prefix again, and observations per second for one session
and for many at once. The default model on 28 x 28 binary images; its weights do not matter to the time.
"""

from typing import Any

import torch

from benchmarks.machine import circumstances, paired, run, seconds
from deformer import Binary, DEformer, Session, SessionPool, generator, image_schema, log_prob


def growth(model: DEformer, lengths: tuple[int, ...], runs: int) -> dict[str, Any]:
    """Time the n-th observation, and a pass over all n values, in turn."""
    n_features = len(model.schema)
    order = torch.randperm(n_features, generator=generator(0))
    row = (torch.rand(1, n_features, generator=generator(1)) < 0.13).float()
    names, results = model.schema.names, {}
    for n in lengths:
        told = [names[i] for i in order[: n - 1].tolist()]
        codes = [float(row[0, i]) for i in order[: n - 1].tolist()]
        last = int(order[n - 1])
        told_all = {"features": model.schema.index(told), "codes": codes, "running_nats": 0.0, "expected_nats": 0.0}
        sessions = [Session(model) for _ in range(runs + 1)]  # each takes its n-th value once, as in use
        for session in sessions:
            session.restore(told_all)

        def one_value(sessions: list[Session] = sessions, last: int = last) -> None:
            sessions.pop().observe(names[last], float(row[0, last]))

        def whole_prefix(n: int = n) -> None:
            log_prob(model, row, orders=order[:n])

        one, again, ratio = paired(one_value, whole_prefix, runs)
        results[str(n)] = {"observation_ms": 1000 * one, "prefix_ms": 1000 * again, "ratio": ratio}
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
        "growth": growth(model, lengths, 1 if quick else 15),
        "one_session": one,
        "many_sessions": many,
        "batched_ratio": many["observations_per_second"] / one["observations_per_second"],
        "machine": circumstances(),
    }


if __name__ == "__main__":
    run(__doc__, "stream", measure)
