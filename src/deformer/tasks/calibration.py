"""Calibration: thresholds of alarms from ordinary rows, for the excess of scores that are followed value by value."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from deformer.data.frames import Codec
from deformer.data.orders import permute, random_orders
from deformer.data.schema import Continuous
from deformer.data.table import Rows, as_rows
from deformer.errors import InputError
from deformer.nn.model import DEformer
from deformer.tasks.density import batches
from deformer.tasks.predictive import expected_nats
from deformer.tasks.streaming import Alarms, Vocabulary, are_near

Per = Literal["row", "length"]
MANY_ROWS = 10_000  # enough for thresholds, though a table of ordinary rows may hold millions


def calibrate(
    model: DEformer,
    values: Any,
    rate: float = 0.01,
    *,
    per: Per = "row",
    n_orders: int = 4,
    generator: torch.Generator,
    log_base: Tensor | None = None,
    codec: Codec | None = None,
) -> Alarms:
    """Choose thresholds so that ordinary rows raise an alarm at most at the given rate, less if many are alike.

    Args:
        values: Ordinary rows that the model was not trained on; of very many, max(10,000, 100 / rate) are
            drawn. Prefixes longer than theirs share the last threshold.
        rate: Share of false alarms; with fewer than 1 / rate rows, too few to show it, the highest excess is used.
        per: Which ordinary rows the rate counts: "row", those that raise an alarm at any time; "length", those above
            the threshold at a number of values chosen in advance.
        log_base: ln p(value | code) of labels and levels, (rows, features), if values are codes of a table.
        codec: Of that table, whose rare labels share a code. None: every label has its own.

    Raises:
        InputError: A rate outside (0, 1), an unknown `per`, rows without any value, or a number too far out to have a
            density.
    """
    if not 0 < rate < 1:
        raise InputError(f"The rate of false alarms must lie between 0 and 1, not {rate}.")
    if per not in ("row", "length"):
        raise InputError(f"per must be 'row' or 'length', not {per!r}.")
    rows, enough = as_rows(values, model.schema), max(MANY_ROWS, math.ceil(100 / rate))
    check_near(rows)
    if len(rows) > enough:
        some = torch.randperm(len(rows), generator=generator)[:enough]
        rows, log_base = rows[some], None if log_base is None else log_base[some]
    excess = excess_of_prefixes(model, rows, n_orders, generator, log_base, codec)
    known = excess[:, ~excess.isnan().all(0)]
    if not known.shape[1]:
        raise InputError("Thresholds need rows with at least one value.")
    limits = row_thresholds(known, rate, n_orders) if per == "row" else thresholds(known, rate, n_orders)
    return Alarms(tuple(limits.tolist()), rate)


def check_near(rows: Rows) -> None:
    """Refuse rows with a number that has no density, which would make thresholds infinite or no numbers.

    Raises:
        InputError: There is one; the message names its row and column.
    """
    numbers = [i for i, feature in enumerate(rows.schema.features) if isinstance(feature.domain, Continuous)]
    for i in numbers:
        feature, codes = rows.schema.features[i], rows.values[:, i].double().cpu().numpy()
        far = rows.observed[:, i].cpu().numpy() & ~are_near(feature.domain, codes)
        if far.any():
            raise InputError(f"Column {feature.name!r} holds a number in row {far.argmax()} too far out to be scored.")


@torch.no_grad()
def excess_of_prefixes(
    model: DEformer,
    values: Any,
    n_orders: int,
    generator: torch.Generator,
    log_base: Tensor | None = None,
    codec: Codec | None = None,
) -> Float[Tensor, "prefixes features"]:
    """Give `excess_nats` after every observation of rows under random orders; NaN beyond what a row has.

    Args:
        log_base: ln p(value | code) of labels and levels, (rows, features), where values are codes of a table.
        codec: Of that table, whose rare labels share a code. None: every label has its own.
    """
    rows, shared = as_rows(values, model.schema), Vocabulary.of(model, codec).shared
    beside = torch.zeros(rows.values.shape) if log_base is None else log_base
    parts = []
    for _ in range(n_orders):
        for b in batches(len(rows), len(model.schema)):
            part = rows[b].to(model.device)
            orders = random_orders(part.observed, generator)
            x = permute(part.values, orders)
            conditionals = model(orders, x)
            nats = -conditionals.log_prob(x) - permute(beside[b].to(x.device), orders)
            excess = (nats - expected_nats(conditionals, shared[orders.cpu()])).double().cumsum(-1)
            parts.append(excess.masked_fill(~permute(part.observed, orders), torch.nan).cpu())
    return torch.cat(parts)


def row_thresholds(excess: Float[Tensor, "prefixes features"], rate: float, n_orders: int) -> Float[Tensor, "features"]:
    """Give limits of which a new ordinary row exceeds any at a rate: the mean and so many deviations at each length.

    Deviations do not shrink with the length, lest few long rows, which may be alike, make the limit too tight.
    """
    mean = excess.nanmean(0)
    deviation = (excess - mean).square().nanmean(0).sqrt().cummax(0).values.clamp(min=1e-9)
    highest = ((excess - mean) / deviation).nan_to_num(nan=-torch.inf).amax(1, keepdim=True)
    return mean + deviation * thresholds(highest[highest[:, 0] > -torch.inf], rate, n_orders)


def thresholds(excess: Float[Tensor, "prefixes features"], rate: float, n_orders: int) -> Float[Tensor, "features"]:
    """Give what `excess_of_prefixes` of a new ordinary row exceeds at a rate, from that of n rows under several orders.

    The new row is as likely to have any rank among n + 1 as another, so that the threshold is the one of rank
    (n + 1)(1 - rate) among n, rounded up.

    References:
        Algorithmic Learning in a Random World (Vovk, Gammerman & Shafer, 2005): conformal prediction.
    """
    known = (~excess.isnan()).sum(0)
    ranks = ((known / n_orders + 1).double() * (1 - rate) * n_orders - 1e-9).ceil().long()
    ranks = ranks.minimum(known).clamp(min=1)
    return excess.sort(0).values.gather(0, ranks[None] - 1)[0]  # NaN comes last
