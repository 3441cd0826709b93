"""Pictures: sheets of images, holes filled in, histograms and learning curves, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    return buffer.getvalue()


def _grid(n: int, columns: int, size: float) -> tuple[Figure, Any]:
    """Lay out n images, of inches in size, without axes."""
    rows = -(-n // columns)
    figure = Figure(figsize=(columns * size, rows * size), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def _axis() -> tuple[Figure, Any]:
    figure = Figure(figsize=(6, 3.2))
    return figure, figure.subplots()


def sheet(images: Tensor, shape: tuple[int, int], titles: Sequence[str] | None = None) -> bytes:
    """Show images side by side, ten in a row.

    Args:
        images: (n, height * width).
        titles: One per image, such as its NLL.
    """
    figure, axes = _grid(len(images), 10, 0.9)
    top = max(float(images.max()), 1.0)
    for i, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(image.view(shape).cpu().numpy(), cmap="gray", vmin=0, vmax=top)
        if titles is not None:
            axis.set_title(titles[i], fontsize=7, pad=2)
    return _png(figure)


def holes(original: Tensor, filled: Mapping[str, tuple[Tensor, Tensor]], shape: tuple[int, int], top: float) -> bytes:
    """Show each image, then for each kind of hole what was removed (red) and what was filled in.

    Args:
        original: (n, pixels).
        filled: By kind of hole: the mask of what was kept, and the images filled in, both (n, pixels).
    """
    figure, axes = _grid(len(original) * (1 + 2 * len(filled)), 1 + 2 * len(filled), 1.1)
    for i, image in enumerate(original):
        _show(axes[i][0], image, None, shape, top)
        for j, (kept, images) in enumerate(filled.values()):
            _show(axes[i][1 + 2 * j], image, kept[i], shape, top)
            _show(axes[i][2 + 2 * j], images[i], None, shape, top)
    axes[0][0].set_title("original", fontsize=8)
    for j, kind in enumerate(filled):
        axes[0][1 + 2 * j].set_title(f"{kind} removed", fontsize=8)
        axes[0][2 + 2 * j].set_title("filled in", fontsize=8)
    return _png(figure)


def _show(axis: Any, image: Tensor, kept: Tensor | None, shape: tuple[int, int], top: float) -> None:
    colours = np.repeat(image.view(shape).float().cpu().numpy()[..., None] / top, 3, axis=2)
    if kept is not None:
        colours[~kept.view(shape).cpu().numpy()] = (0.85, 0.1, 0.1)
    axis.imshow(colours.clip(0, 1))


def histogram(groups: Mapping[str, Tensor]) -> bytes:
    """Show how the negative log-likelihoods of several groups are distributed, over the same bins."""
    figure, axis = _axis()
    everything = np.concatenate([scores.cpu().numpy() for scores in groups.values()])
    bins = np.histogram_bin_edges(everything, 60)
    for name, scores in groups.items():
        axis.hist(scores.cpu().numpy(), bins.tolist(), alpha=0.6, density=True, label=name)
    axis.set_xlabel("negative log-likelihood (nats)")
    axis.set_ylabel("density")
    axis.legend(frameon=False)
    return _png(figure)


def curve(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str, up: str) -> bytes:
    """Draw lines such as a score against minutes."""
    figure, axis = _axis()
    few = len(lines) <= 5
    for i, (name, (x, y)) in enumerate(lines.items()):
        axis.plot(x, y, "-" if i < 10 else "--", marker="." if few else "", label=name)  # after ten, colours repeat
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    if few:
        axis.legend(frameon=False)
    else:
        axis.legend(frameon=False, fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.grid(alpha=0.3)
    return _png(figure)
