"""Speed against a plain implementation of the paper: `python -m benchmarks.speed [--quick]`.

One process, the same threads, medians of paired runs. Where the plain way would take hours (a full pass per pixel), a
few passes are timed, which all cost the same, and multiplied out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import circumstances, matmul_rate, paired, run, seconds
from benchmarks.plain import PlainDEformer, draw_pixels
from deformer import Binary, DEformer, ModelConfig, as_rows, generator, image_schema, impute, paper_config, sample
from deformer.train.process import bfloat16_is_fast

SIDE = 28
D = SIDE * SIDE
SCHEMA = image_schema(SIDE, SIDE, Binary())


def random_images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Give random orders and pixels, (n, 784) each; their values do not matter to the time."""
    draws = generator(seed, "images")
    return torch.rand(n, D, generator=draws).argsort(-1), (torch.rand(n, D, generator=draws) < 0.13).float()


def training_step(model: DEformer, n: int) -> Callable[[], None]:
    """Make a forward, backward and Adam step of ours on n images, in the precision that `fit` would choose here."""
    orders, values = random_images(n)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-6)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast()):
            loss = -model(orders, values).log_prob(values).mean()
        loss.backward()
        optimiser.step()

    return step


def plain_step(model: PlainDEformer) -> Callable[[], None]:
    """Make a forward, backward and Adam step of the plain model on one image."""
    orders, values = random_images(1)
    places = torch.stack([orders[0] // SIDE, orders[0] % SIDE], -1).float()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-6)
    loss_of = torch.nn.BCEWithLogitsLoss()

    def step() -> None:
        optimiser.zero_grad()
        loss_of(model(places, values[0]), values[0]).backward()
        optimiser.step()

    return step


def training(runs: int, n_images: int, network: dict[str, int]) -> dict[str, Any]:
    """Compare training images per second at the paper's size."""
    plain = PlainDEformer(D, **network).train()
    sizes = {"d_model": network["d_model"], "n_layers": network["n_layers"], "n_heads": network["n_heads"]}
    configs = {
        "interleaved": ModelConfig(**{**vars(paper_config()), **sizes, "d_ff": network["d_ff"]}),
        "two_stream": ModelConfig(**sizes, d_ff=network["d_ff"]),
    }
    results = {}
    for name, config in configs.items():
        step = training_step(DEformer(SCHEMA, config).train(), n_images)
        ours, theirs, ratio = paired(step, plain_step(plain), runs)
        results[f"training_{name}"] = {
            "images_per_second": n_images / ours,
            "plain_images_per_second": 1 / theirs,
            "ratio": ratio * n_images,
            "precision": "bfloat16" if bfloat16_is_fast() else "float32",
        }
    return results


def drawing(c: ModelConfig, suffix: str, runs: int, n_images: int, passes: int) -> dict[str, Any]:
    """Compare drawing images, and filling 100 pixels of each, with a model and a plain one of its size."""
    plain = PlainDEformer(D, c.d_model, c.n_heads, c.width_ff, c.n_layers).eval()
    model = DEformer(SCHEMA, c).eval()
    orders, values = random_images(n_images)
    places = torch.stack([orders[0] // SIDE, orders[0] % SIDE], -1).float()
    holes = torch.rand(n_images, D, generator=generator(0, "holes")).argsort(-1) >= 100
    rows = as_rows(values, SCHEMA, observed=holes)

    def a_few_passes() -> None:
        draw_pixels(plain, places, values[0].clone(), 400, passes)

    tasks: dict[str, tuple[Callable[[], object], int]] = {
        "drawing": (lambda: sample(model, n_images, generator=generator(0)), D),
        "filling_100": (lambda: impute(model, rows, generator=generator(0)), 100),
    }
    results = {}
    for name, (task, n_pixels) in tasks.items():
        ours, theirs, ratio = paired(task, a_few_passes, runs)
        times = n_images * n_pixels / passes
        figures = {"seconds": ours, "plain_seconds_multiplied_out": theirs * times, "ratio": ratio * times}
        results[name + suffix] = {**figures, "parameters": model.n_parameters}
    return results


def step_operations(c: ModelConfig, n_images: int) -> float:
    """Count the operations of a two-stream training step: two per multiply-add, the backward pass twice the forward.

    Per block and position, content and query each pass the query, mixing and feed-forward matrices, content alone
    those of keys and values; each attends to half of the keys on average. The network of the neighbours runs once.
    """
    d, ff, n_neighbours = c.d_model, c.width_ff, (2 * c.neighbourhood + 1) ** 2 - 1
    around = 2 * n_neighbours * ff + ff * d if n_neighbours else 0
    per_token = 2 * d * d + 2 * d * ff + D * d  # query and mixing, feed-forward, scores and values over D / 2 keys
    tokens = c.n_layers + c.depth_of_content
    return 3 * 2 * n_images * D * (tokens * per_token + c.n_layers * 2 * d * d + around)


def fraction_of_peak(runs: int, n_images: int) -> dict[str, float]:
    """Give the rate of a training step of the default model against the machine's matrix products."""
    model = DEformer(SCHEMA).train()
    step = training_step(model, n_images)
    step()
    rate = step_operations(model.config, n_images) / min(seconds(step) for _ in range(runs))
    peaks = {name: matmul_rate(getattr(torch, name)) for name in ("bfloat16", "float32")}
    return {
        "step_gigaflops": rate / 1e9,
        **{f"{name}_gigaflops": peak / 1e9 for name, peak in peaks.items()},
        **{f"fraction_of_{name}": rate / peak for name, peak in peaks.items()},
    }


def step_costs(runs: int, sizes: tuple[int, ...], compiled: tuple[int, ...]) -> dict[str, float]:
    """Time training steps of the default model on several numbers of images, for some of them compiled as well."""
    model = DEformer(SCHEMA).train()
    steps = {str(n): training_step(model, n) for n in sizes}
    fused: Any = torch.compile(model)
    steps |= {f"{n} compiled": training_step(fused, n) for n in compiled}
    for step in steps.values():
        step()
    return {name: min(seconds(step) for _ in range(runs)) for name, step in steps.items()}


def measure(quick: bool) -> dict[str, Any]:
    """Measure everything; quick is a toy size that shows that the code runs."""
    paper = {"d_model": 512, "n_heads": 8, "d_ff": 2048, "n_layers": 6}
    toy = {"d_model": 16, "n_heads": 2, "d_ff": 32, "n_layers": 1}
    return {
        **training(1 if quick else 5, 1 if quick else 6, toy if quick else paper),
        **drawing(ModelConfig(), "", *((1, 2, 1) if quick else (3, 64, 10))),
        **drawing(ModelConfig(neighbourhood=0), "_without_neighbours", *((1, 2, 1) if quick else (3, 64, 10))),
        "step_seconds": step_costs(*((1, (1,), ()) if quick else (5, (1, 3, 6, 12, 24), (6,)))),
        "peak": fraction_of_peak(1 if quick else 8, 1 if quick else 6),
        "machine": circumstances(),
    }


if __name__ == "__main__":
    run(__doc__, "speed", measure)
