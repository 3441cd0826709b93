"""What a step does, as a function of how far the run has come."""

import bisect

from deformer.config import TrainConfig


def fraction_done(config: TrainConfig, step: int, rows_seen: int, n_rows: int, minutes: float) -> float:
    """Say how far a run has come, by the limit that is nearest: 0 at the start, 1 at the end."""
    return max(
        step / config.steps if config.steps else 0.0,
        rows_seen / (config.epochs * n_rows) if config.epochs else 0.0,
        minutes / config.minutes if config.minutes else 0.0,
    )


def rate(config: TrainConfig, done: float, step: int) -> float:
    """Give the factor on the learning rates: linear warm-up and, in each cycle, a constant part and linear decay."""
    if config.recipe == "adam":
        return 1.0
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    ends = cycle_ends(config)
    now = bisect.bisect_right(ends, done, hi=len(ends) - 1)
    start, end = (0.0, *ends)[now], ends[now]
    past = max(0.0, (done - start) / (end - start) - config.constant) / max(1 - config.constant, 1e-9)
    return warm * (1 - (1 - config.final_lr) * min(past, 1.0))


def cycle_ends(config: TrainConfig) -> list[float]:
    """Give the fractions of a run at which its cycles end, each twice as long as the one before."""
    return [(2**k - 1) / (2**config.cycles - 1) for k in range(1, config.cycles + 1)]


def n_features_now(config: TrainConfig, done: float, n_features: int) -> int:
    """Give the size of the random subsets of features that the curriculum asks for."""
    fraction = next((f for until, f in config.curriculum if done < until), config.curriculum[-1][1])
    return max(1, round(fraction * n_features))


def n_rows_now(config: TrainConfig, n_features: int, n_rows: int) -> int:
    """Give the rows of a batch, so that every step costs about the same."""
    return min(n_rows, config.rows_per_step or max(1, config.tokens_per_step // n_features))
