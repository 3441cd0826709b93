"""What a training leaves behind beside its weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One validation: when it was and what it saw, in nats per row.

    The training figure is scaled from the batch's subset of features to whole rows, which have more evidence.
    """

    step: int
    minutes: float
    rows_seen: int
    training_nll: float
    validation_nll: float | None


@dataclass(frozen=True)
class History:
    """How a training went; `stopped` is "done", "patience" or "interrupted"."""

    points: tuple[Point, ...]
    stopped: str

    @property
    def best(self) -> Point | None:
        """The validation whose weights are kept; without validation rows the last point, None if there is none."""
        scored = [p for p in self.points if p.validation_nll is not None]
        if scored:
            return min(scored, key=lambda p: p.validation_nll or 0.0)
        return self.points[-1] if self.points else None

    def raise_if_interrupted(self) -> None:
        """Pass on, after the weights are kept, the signal that ended the training, to whoever goes on otherwise.

        Raises:
            KeyboardInterrupt: It was interrupted.
        """
        if self.stopped == "interrupted":
            raise KeyboardInterrupt("the training was interrupted; its best weights are kept")
