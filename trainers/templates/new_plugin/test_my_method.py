"""The method against values computed by hand: `pytest` in this folder."""

from pathlib import Path

import pytest
import torch

from trainers import load_experiment
from trainers.plugins import LOSSES, State, load_plugin

HERE = Path(__file__).parent
P = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
Y = torch.tensor([[0.25, 0.75], [1.0, 0.0]])


@pytest.fixture(scope="module", autouse=True)
def plugin() -> None:
    """As --plugin does."""
    load_plugin(HERE / "my_method.py")


def test_it_is_its_formula() -> None:
    """At sharpness 2 the label .25, .75 becomes .1, .9; a hard one stays what it is."""
    expected = [-(0.1 * P[0, 0].log() + 0.9 * P[0, 1].log()).item(), -P[1, 0].log().item()]
    assert LOSSES["my_method"](P.log(), Y, State(), sharpness=2.0).tolist() == pytest.approx(expected)


def test_it_is_cross_entropy_at_sharpness_one() -> None:
    """As `xent`."""
    found = LOSSES["my_method"](P.log(), Y, State(), sharpness=1.0)
    assert found.tolist() == pytest.approx(LOSSES["xent"](P.log(), Y, State()).tolist())


def test_its_gradient_is_finite() -> None:
    """At labels that are certain, too."""
    logits = torch.zeros(2, 2, requires_grad=True)
    LOSSES["my_method"](logits.log_softmax(-1), torch.eye(2), State()).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_experiment_reads_it() -> None:
    """Its settings are checked as all others are."""
    config = load_experiment(HERE / "experiment.yaml")
    assert "my_method" in config.methods
    assert config.method_args.of("my_method") == {"sharpness": 2.0}
