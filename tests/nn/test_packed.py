import pytest
import torch

from deformer.nn.families import Inflated
from deformer.nn.packed import PackedInflated


def packed(mass: float, kind: str = "logistic", dtype: torch.dtype = torch.float64, n: int = 4) -> PackedInflated:
    """Give numbers around 2 that spread by 3, of which one has a probability of its own."""
    family = Inflated(3, kind)  # type: ignore[arg-type]
    params = torch.randn(4, family.n_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = torch.tensor([[2.0, 3.0, mass]], dtype=torch.float64).expand(n, 3)
    return PackedInflated(family, params.to(dtype)[:n], None, units)


def each(p: PackedInflated, x: float) -> torch.Tensor:
    return torch.full((len(p.params),), x, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
@pytest.mark.parametrize("mass", [2.0, -1.0, 170.0])
def test_a_point_mass_and_the_density_beside_it_sum_to_one(kind: str, mass: float) -> None:
    p = packed(mass, kind)
    share = torch.sigmoid(p.odds)
    torch.testing.assert_close(p.log_prob(each(p, mass)).exp(), share)
    x = torch.linspace(-178, 182, 240_002, dtype=torch.float64)
    dx = x[1] - x[0]
    log_p = torch.stack([p.take(torch.full((len(x),), i)).log_prob(x) for i in range(4)])
    density = log_p.exp()
    torch.testing.assert_close(share + density.sum(1) * dx, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    mean = share * mass + (density @ x) * dx
    torch.testing.assert_close(p.mean(), mean, rtol=0, atol=1e-4)
    square = share * mass**2 + (density @ x**2) * dx
    torch.testing.assert_close(p.variance(), square - mean**2, rtol=1e-3, atol=0)
    expected = -(density * log_p).sum(1) * dx - share * share.log()
    torch.testing.assert_close(p.entropy(), expected, rtol=0, atol=1e-3)
    below = density[:, x < mass].sum(1) * dx
    torch.testing.assert_close(p.cdf(each(p, mass)), below + share, rtol=0, atol=1e-3)
    torch.testing.assert_close(p.cdf(each(p, mass - 1e-9)), below, rtol=0, atol=1e-3)
    tail = (2 * torch.minimum(below + share, 1 - below)).clamp(max=1.0)
    torch.testing.assert_close(p.tail(each(p, mass)), tail, rtol=0, atol=2e-3)
    drawn = p.repeat(5000).sample(torch.Generator().manual_seed(0), 1.0).view(4, -1)
    torch.testing.assert_close((drawn == mass).double().mean(1), share, rtol=0, atol=0.03)


def test_the_mode_is_the_point_mass_if_half_of_the_probability_is_there() -> None:
    p = packed(-7.0)
    assert ((p.mode() == -7.0) == (p.odds >= 0)).all()
    assert 0 < (p.odds >= 0).sum() < 4


@pytest.mark.parametrize("mass", [-(2.0**31), 9.97e36, 1e140])
def test_a_point_mass_however_far_leaves_the_digits_of_all_others(mass: float) -> None:
    near, far = (packed(m, dtype=torch.float32) for m in (-7.0, mass))
    for x in (1.9, 2.0, 2.000001, 40.0):
        assert torch.equal(near.log_prob(each(near, x)), far.log_prob(each(far, x)))
    drawn = far.sample(torch.Generator().manual_seed(0), 1.0)
    other = near.sample(torch.Generator().manual_seed(0), 1.0)
    assert torch.equal(drawn[drawn != mass], other[other != -7.0])
    far.params.requires_grad_()
    log_p = far.log_prob(each(far, mass))
    torch.testing.assert_close(log_p.detach(), near.log_prob(each(near, -7.0)))
    assert torch.isfinite(torch.autograd.grad(log_p.sum(), far.params)[0]).all()
    assert torch.isfinite(far.mean()).all()


def test_what_a_point_mass_leaves_keeps_its_digits() -> None:
    double, single = packed(0.0), packed(0.0, dtype=torch.float32)
    for p in (double, single):
        p.params[:, :-1] = double.params[:, :-1]
        p.params[:, -1] = 20.0
    for found, exact in ((single.cdf, double.cdf), (single.tail, double.tail)):
        torch.testing.assert_close(found(each(single, -3.0)).double(), exact(each(double, -3.0)), rtol=1e-4, atol=0)
    torch.testing.assert_close(single.variance().double(), double.variance(), rtol=1e-4, atol=0)


def test_a_point_mass_may_be_spelled_in_float32() -> None:
    p = packed(0.1)
    spelled = torch.full((4,), 0.1)
    torch.testing.assert_close(p.log_prob(spelled), torch.nn.functional.logsigmoid(p.odds))
    assert (p.cdf(spelled) - p.cdf(torch.full((4,), 0.0999)) > 0.9 * p.share).all()
