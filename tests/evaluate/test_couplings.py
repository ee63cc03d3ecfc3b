"""Couplings on a mixture: straighter flows and better few steps, and what a label in the noise does to them."""

import json
import math

import pytest
import torch

from genflow.errors import InputError
from genflow.evaluate import couplings
from genflow.evaluate.couplings import CONDITIONAL, EULER_STEPS, PLAIN, Setting, class_means, mixture, study

TRAINING = {"steps": 500, "batch_size": 128, "samples": 400}


def test_the_mixture_is_the_ring_with_its_halves_as_classes():
    x, classes = mixture(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(x[:, 1].abs() > 2, (x[:, 1] * (1 - 2 * classes)) > 2)
    assert float(x.norm(dim=1).square().mean()) == pytest.approx(3.0**2 + 2 * 0.3**2, rel=0.01)
    even = mixture(80, torch.Generator().manual_seed(0), even=True)[1]
    assert even.bincount().tolist() == [40, 40]


def test_noise_given_a_class_is_centred_where_it_should_be():
    """Coupled over all, the upper half of the ring takes the upper half of the noise, whose mean is sqrt(2 / pi)."""
    leaks = {setting.name: class_means(setting, 128, 40) for setting in CONDITIONAL}
    for name in ("independent, labels", "exact by class, labels"):
        assert leaks[name].norm(dim=1).max() < 4 * math.sqrt(2 / (40 * 64))
    expected = torch.tensor([[0.0, 1.0], [0.0, -1.0]]) * math.sqrt(2 / math.pi)
    assert (leaks["exact over all, labels"] - expected).abs().max() < 0.07


@pytest.mark.slow
def test_optimal_couplings_straighten_the_flow_and_mend_few_steps():
    independent, *optimal = (study(setting, **TRAINING) for setting in PLAIN)
    assert len(optimal) == 2
    for outcome in optimal:
        assert outcome.straightness < 0.1 * independent.straightness, outcome.name
        assert outcome.cost < independent.cost, outcome.name
        for k in EULER_STEPS:
            assert outcome.errors[k] < 0.5 * independent.errors[k], (outcome.name, k)
        assert outcome.distances[1] < 0.4 * independent.distances[1], outcome.name
        assert outcome.distances[2] < 0.7 * independent.distances[2], outcome.name
        assert outcome.distances[4] < independent.distances[4], outcome.name
        # the flow itself ends where it did
        assert outcome.distances[0] < independent.distances[0] + 0.15, outcome.name


@pytest.mark.slow
def test_a_label_in_the_noise_spoils_the_flow():
    independent, by_class, over_all = (study(setting, **TRAINING) for setting in CONDITIONAL)
    assert by_class.straightness < 0.1 * independent.straightness
    assert by_class.distances[0] < independent.distances[0] + 0.15
    assert over_all.distances[0] > 2 * by_class.distances[0]
    for k in EULER_STEPS:
        assert by_class.errors[k] < 0.5 * independent.errors[k]


def test_the_command_writes_table_json_and_figure(tmp_path, capsys):
    couplings.main(3, 16, 24, 1, tmp_path / "c.json", tmp_path / "c.png")
    assert "sinkhorn-newton" in capsys.readouterr().out
    results = json.loads((tmp_path / "c.json").read_text())
    assert [row["name"] for row in results["outcomes"]] == [setting.name for setting in (*PLAIN, *CONDITIONAL)]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_training_is_a_function_of_the_seed():
    setting = Setting("one", "sinkhorn")
    ends = [study(setting, 3, 16, seed, 24).trajectory for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_bad_numbers_are_refused():
    with pytest.raises(InputError, match="samples: got 3"):
        couplings.main(3, 16, 3)
