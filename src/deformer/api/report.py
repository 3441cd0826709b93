"""Scores as named figures and as text."""

import math

from deformer.tasks.density import NLL


def report(scores: NLL, n_features: int) -> dict[str, int | float]:
    """Name the figures of a scoring, in nats per row unless a name says otherwise."""
    n_orders, n_rows = scores.per_order.shape
    return {
        "rows": n_rows,
        "orders": n_orders,
        "nll_mean_over_orders": scores.mean,
        "nll_mean_over_orders_standard_error": scores.mean_error,
        "nll_ensemble_over_orders": scores.ensemble,
        "nll_ensemble_over_orders_standard_error": scores.ensemble_error,
        "bits_per_dim": scores.mean / math.log(2) / n_features,
        "order_spread": scores.order_spread,
    }


def spell(figures: dict[str, int | float]) -> str:
    """Write the figures for a person."""
    f = figures
    mean, ensemble = "nll_mean_over_orders", "nll_ensemble_over_orders"
    return "\n".join(
        [
            f"negative log-likelihood of {f['rows']} rows under {f['orders']} random orders each, +- standard error",
            f"  mean over orders      {f[mean]:.2f} +- {f[mean + '_standard_error']:.2f} nats"
            f"  ({f['bits_per_dim']:.4f} bits per dimension)",
            f"  ensemble over orders  {f[ensemble]:.2f} +- {f[ensemble + '_standard_error']:.2f} nats",
            f"  spread of a row over orders  {f['order_spread']:.2f} nats",
        ]
    )
