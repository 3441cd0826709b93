"""Random sequences of what sessions can do, against a pass over everything at each step.

`python -m benchmarks.fuzz [--sequences 10000]` opens, observes, predicts, forks, restores and closes sessions and their
doubles in a pool that is too small for them, and compares every score with the model's own, in float64.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.machine import RESULTS, circumstances
from deformer import Binary, DEformer, ModelConfig, Session, SessionPool, image_schema, log_prob, new_model
from deformer.errors import InputError

WITHIN = 1e-10
MOST = 6  # sessions at a time
Told = tuple[tuple[int, float], ...]


@dataclass
class Double:
    """A session, its double in the pool, and what both were told."""

    session: Session
    name: Any
    told: Told = ()


class Sequence:
    """Some sessions and what happens to them."""

    def __init__(self, model: DEformer, draws: random.Random) -> None:
        self.model, self.draws = model, draws
        self.pool = SessionPool(model, memory=1 << 13)
        self.doubles = [self.open()]
        self.compared = 0

    def open(self) -> Double:
        return Double(Session(self.model), self.pool.open())

    def step(self) -> None:
        if not self.doubles:
            self.doubles.append(self.open())
        at = self.draws.randrange(len(self.doubles))
        several = self.observe_several
        what = self.draws.choice([self.observe, self.observe, several, self.predict, self.fork, self.restore])
        if self.draws.random() < 0.1:
            what = self.close
        what(at)

    def observe(self, at: int) -> None:
        double, feature = self.doubles[at], self.draws.randrange(len(self.model.schema))
        name, value = self.model.schema.names[feature], float(self.draws.random() < 0.5)
        if feature in dict(double.told):
            for refused in (
                lambda: double.session.observe(name, value),
                lambda: self.pool.observe([(double.name, name, value)]),
            ):
                try:
                    refused()
                except InputError:
                    continue
                raise AssertionError(f"{name} was observed twice")
            return
        self.take_in([(double, feature, value)])

    def observe_several(self, _: int) -> None:
        """Let values of several sessions arrive at once, some of them for one session."""
        coming: list[tuple[Double, int, float]] = []
        for double in self.doubles:
            rest = [f for f in range(len(self.model.schema)) if f not in dict(double.told)]
            for feature in self.draws.sample(rest, min(len(rest), self.draws.randrange(4))):
                coming.append((double, feature, float(self.draws.random() < 0.5)))
        self.draws.shuffle(coming)
        self.take_in(coming)

    def take_in(self, coming: list[tuple[Double, int, float]]) -> None:
        named = [(double, self.model.schema.names[feature], value) for double, feature, value in coming]
        pooled = self.pool.observe([(double.name, name, value) for double, name, value in named])
        for (double, name, value), (_, feature, _), surprise in zip(named, coming, pooled, strict=True):
            before, double.told = self.running_nats(double.told), (*double.told, (feature, value))
            expected, own = self.running_nats(double.told), double.session.observe(name, value)
            for told in (own, surprise):
                self.same(told.running_nats, expected)
                self.same(told.nats, expected - before)
            self.same(own.excess_nats, surprise.excess_nats)
            self.same(own.tail, surprise.tail)

    def predict(self, at: int) -> None:
        double, feature = self.doubles[at], self.draws.randrange(len(self.model.schema))
        name = self.model.schema.names[feature]
        [answer] = self.pool.predict([(double.name, name)])
        own = double.session.predict(name).mean().item()
        self.same(own, answer.mean().item())
        if feature not in dict(double.told):
            with_it = self.running_nats((*double.told, (feature, 1.0)))
            self.same(own, math.exp(self.running_nats(double.told) - with_it))

    def fork(self, at: int) -> None:
        if len(self.doubles) < MOST:
            double = self.doubles[at]
            twin = self.pool.open(snapshot=double.session.snapshot())
            self.doubles.append(Double(double.session.fork(), twin, double.told))

    def restore(self, at: int) -> None:
        fresh = Session(self.model)
        fresh.restore(self.doubles[at].session.snapshot())
        self.doubles[at].session = fresh

    def close(self, at: int) -> None:
        double = self.doubles.pop(at)
        double.session.close()
        self.pool.close(double.name)

    def running_nats(self, told: Told) -> float:
        if not told:
            return 0.0
        row = torch.full((1, len(self.model.schema)), torch.nan, dtype=torch.float64)
        for feature, value in told:
            row[0, feature] = value
        return -log_prob(self.model, row, orders=torch.tensor([feature for feature, _ in told])).item()

    def same(self, one: float, other: float) -> None:
        self.compared += 1
        if not abs(one - other) < WITHIN:
            raise AssertionError(f"{one} is not {other}")


def run(n_sequences: int, length: int = 12, seed: int = 0) -> dict[str, Any]:
    """Run sequences; any difference is an AssertionError that names its sequence."""
    shape = ModelConfig(d_model=8, n_layers=2, n_heads=1, neighbourhood=1)
    model = new_model(image_schema(3, 3, Binary()), shape).double().eval()
    noise = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=noise, dtype=torch.float64))
    start, compared = time.monotonic(), 0
    for number in range(n_sequences):
        sequence = Sequence(model, random.Random(1_000_003 * seed + number))
        try:
            for _ in range(length):
                sequence.step()
        except AssertionError as error:
            raise AssertionError(f"sequence {number}: {error}") from error
        compared += sequence.compared
    return {"sequences": n_sequences, "steps_of_each": length, "comparisons": compared, "differences": 0} | {
        "seconds": time.monotonic() - start
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=10_000)
    results = {**run(parser.parse_args().sequences), "machine": circumstances()}
    print(json.dumps(results, indent=2))
    (RESULTS / "fuzz.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
