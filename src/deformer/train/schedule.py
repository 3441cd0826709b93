"""What a step does, as a function of how far the run has come."""

from deformer.config import TrainConfig


def fraction_done(config: TrainConfig, step: int, rows_seen: int, n_rows: int, minutes: float) -> float:
    """Say how far a run has come, by the limit that is nearest: 0 at the start, 1 at the end."""
    return max(
        step / config.steps if config.steps else 0.0,
        rows_seen / (config.epochs * n_rows) if config.epochs else 0.0,
        minutes / config.minutes if config.minutes else 0.0,
    )


def rate(config: TrainConfig, done: float, step: int) -> float:
    """Give the factor on the learning rates: linear warm-up, a constant part, linear decay."""
    if config.recipe == "adam":
        return 1.0
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    past = max(0.0, done - config.constant) / max(1 - config.constant, 1e-9)
    return warm * (1 - (1 - config.final_lr) * min(past, 1.0))


def n_features_now(config: TrainConfig, done: float, n_features: int) -> int:
    """Give the size of the random subsets of features that the curriculum asks for."""
    fraction = next((f for until, f in config.curriculum if done < until), config.curriculum[-1][1])
    return max(1, round(fraction * n_features))


def n_rows_now(config: TrainConfig, n_features: int, n_rows: int) -> int:
    """Give the rows of a batch, so that every step costs about the same."""
    return min(n_rows, config.rows_per_step or max(1, config.tokens_per_step // n_features))
