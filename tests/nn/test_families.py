import pytest
import torch

from deformer.nn.families import Bernoulli, Family, Inflated, Labels, Mixture

DISCRETE: dict[str, Family] = {"bernoulli": Bernoulli(), "labels": Labels(5), "ordered": Labels(7, ordered=True)}
CONTINUOUS: dict[str, Family] = {k: Mixture(3, k) for k in ("gaussian", "logistic")}  # type: ignore[arg-type]
ALL = {**DISCRETE, **CONTINUOUS}


def params_of(family: Family, n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, family.n_params, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def n_labels(family: Family) -> int:
    return getattr(family, "n_labels", 2)


def each_label(family: Family, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give labels and their probabilities, (labels,) and (tokens, labels)."""
    labels = torch.arange(n_labels(family), dtype=torch.float64)
    return labels, torch.stack([family.log_prob(params, x.expand(len(params))) for x in labels], 1).exp()


def test_the_entropy_of_what_is_nearly_certain_does_not_cancel() -> None:
    params = torch.tensor([[17.0], [-17.0], [18.0], [-18.0]])
    entropy = Bernoulli().entropy(params)
    torch.testing.assert_close(entropy, Bernoulli().entropy(params.double()).float())
    assert entropy[0] == entropy[1] > entropy[2] == entropy[3] > 0


def over_the_line(family: Family, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    x = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    density = torch.stack([family.log_prob(p.expand(len(x), -1), x).exp() for p in params])
    return x, density, (x[1] - x[0]).item()


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_families(name: str) -> None:
    family = DISCRETE[name]
    params = params_of(family)
    labels, p = each_label(family, params)
    torch.testing.assert_close(p.sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(family.mean(params), p @ labels)
    torch.testing.assert_close(family.mode(params), p.argmax(1).double())
    torch.testing.assert_close(family.entropy(params), -(p * p.log()).sum(1))
    below = torch.stack([family.cdf(params, x.expand(4)) for x in labels], 1)
    torch.testing.assert_close(below, p.cumsum(1))
    tails = torch.stack([family.tail(params, x.expand(4)) for x in labels], 1)
    torch.testing.assert_close(tails, (p[:, None, :] * (p[:, None, :] <= p[:, :, None])).sum(-1))
    undecided = family.tail(torch.zeros_like(params), labels[0].expand(4))
    torch.testing.assert_close(undecided, torch.ones_like(undecided))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_families(name: str) -> None:
    family = CONTINUOUS[name]
    params = params_of(family)
    x, density, dx = over_the_line(family, params)
    torch.testing.assert_close(density.sum(1) * dx, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(family.mean(params), (density @ x) * dx, rtol=0, atol=1e-5)
    torch.testing.assert_close(family.mode(params), x[density.argmax(1)], rtol=0, atol=1e-3)
    expected = -(density * density.clamp(min=1e-300).log()).sum(1) * dx
    torch.testing.assert_close(family.entropy(params), expected, rtol=0, atol=1e-4)
    at = 130_000
    below = density[:, :at].sum(1) * dx
    torch.testing.assert_close(family.cdf(params, x[at].expand(4)), below, rtol=0, atol=1e-3)
    tails = 2 * torch.minimum(below, 1 - below)
    torch.testing.assert_close(family.tail(params, x[at].expand(4)), tails, rtol=0, atol=2e-3)


def test_marginals_of_inflated_numbers() -> None:
    x = torch.cat([torch.full((300,), torch.nan), torch.linspace(5, 6, 700)])
    params = Inflated(4).marginal(x)
    torch.testing.assert_close(torch.sigmoid(params[-1]), torch.tensor(0.3), rtol=0, atol=1e-3)
    assert params[4:8].min() > 5
    assert torch.isfinite(Inflated(4).marginal(torch.full((3,), torch.nan))).all()


@pytest.mark.parametrize("name", ALL)
def test_drawn_frequencies_equal_probabilities(name: str) -> None:
    family = ALL[name]
    params = params_of(family, 1).expand(20_000, -1)
    drawn = family.sample(params, torch.Generator().manual_seed(0))
    again = family.sample(params, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    for point in drawn[:5]:
        expected = family.cdf(params[:1], point[None]).item()
        assert abs((drawn <= point).double().mean().item() - expected) < 0.015
    cold = family.sample(params, torch.Generator().manual_seed(0), temperature=1e-4)
    assert cold.std() < 1e-2 * max(1.0, drawn.std().item()) + 0.05


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [-1e4, -50.0, 50.0, 1e4])
def test_extreme_parameters_stay_finite(name: str, size: float) -> None:
    family = ALL[name]
    params = (params_of(family) * size).requires_grad_()
    for value in (0.0, 1.0):
        log_p = family.log_prob(params, torch.full((4,), value, dtype=torch.float64))
        assert torch.isfinite(log_p).all()
        assert torch.isfinite(torch.autograd.grad(log_p.sum(), params)[0]).all()
    assert torch.isfinite(family.entropy(params)).all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_far_outliers_have_finite_gradients(name: str) -> None:
    family = CONTINUOUS[name]
    params = params_of(family).requires_grad_()
    log_p = family.log_prob(params, torch.full((4,), 1e6, dtype=torch.float64))
    assert torch.isfinite(torch.autograd.grad(log_p.sum(), params)[0]).all()


@pytest.mark.parametrize("name", DISCRETE)
def test_marginals_count(name: str) -> None:
    family = DISCRETE[name]
    x = torch.tensor([0.0] * 600 + [1.0] * 400, dtype=torch.float64)
    _, p = each_label(family, family.marginal(x)[None])
    torch.testing.assert_close(p[0, :2], torch.tensor([0.6, 0.4], dtype=torch.float64), rtol=0, atol=5e-3)


def test_marginals_of_more_numbers_than_quantiles_take() -> None:
    x = torch.linspace(-1, 1, 2**24 + 10)
    means = Mixture(4).marginal(x)[4:8]
    torch.testing.assert_close(means, torch.tensor([-0.75, -0.25, 0.25, 0.75]), rtol=0, atol=1e-3)


def test_no_log_probability_is_rounded_in_training() -> None:
    family = Labels(256, ordered=True)
    params = 10 * params_of(family).float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = family.log_probs(params)
    torch.testing.assert_close(rounded, family.log_probs(params))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_both_tails_reach_as_far(name: str) -> None:
    family = CONTINUOUS[name]
    params = torch.tensor([[0.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    far = 5.0 if name == "gaussian" else 20.0
    low, high = family.tail(params, torch.tensor([-far])), family.tail(params, torch.tensor([far]))
    assert 0 < low.item() < 1e-4
    torch.testing.assert_close(high, low, rtol=0.01, atol=0.0)
    assert family.cdf(params, torch.tensor([1e4])).item() <= 1.0
