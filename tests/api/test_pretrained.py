import math

import pytest
import torch
from tests.real import REAL, needs_real_data

from deformer.api.pretrained import SHIPPED, pretrained, shipped_path
from deformer.data.seeds import generator
from deformer.data.sources import load_source
from deformer.data.table import subset
from deformer.errors import InputError
from deformer.tasks.density import nll
from deformer.train.checkpoint import read_notes


@pytest.mark.parametrize("name", SHIPPED)
def test_it_comes_with_a_card_and_fits_the_size(name: str) -> None:
    path = shipped_path(name)
    assert path.stat().st_size < 8 * 2**20
    card = path.with_suffix(".md").read_text()
    for word in ("Data", "Recipe", "Limits", "nats"):
        assert word in card
    assert read_notes(path)["source"].startswith(name)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="there is mnist-binarized"):
        pretrained("bogus")


@needs_real_data
def test_it_scores_real_images_as_its_notes_say() -> None:
    test = load_source("mnist-binarized", REAL).test
    assert test is not None
    scores = nll(pretrained("mnist-binarized"), subset(test, 40, generator(0)), n_orders=1, generator=generator(0))
    expected = read_notes(shipped_path("mnist-binarized"))["validation_nll"]
    assert abs(scores.mean - expected) < 4 * scores.mean_error
    shuffled = test.values[:40].gather(1, torch.rand(40, 784, generator=generator(1)).argsort(-1))
    strange = nll(pretrained("mnist-binarized"), shuffled, n_orders=1, generator=generator(0))
    assert strange.mean > 2 * scores.mean > 2 * math.log(2)
