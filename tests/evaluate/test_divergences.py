"""Students of each divergence on a mixture: which modes they cover, the exact densities, and the command."""

import json
import math

import pytest
import torch
from PIL import Image

from genflow.distillation import DIVERGENCES
from genflow.errors import InputError
from genflow.evaluate import divergences
from genflow.evaluate.divergences import Mixture, MixtureStudent, divergence_values, modes_covered, ring
from genflow.paths import EDMPath, LinearPath


@pytest.mark.slow
def test_forward_kl_covers_the_modes_that_reverse_kl_drops():
    """Three parts for five modes: reverse-KL stays inside three of them, forward-KL reaches all."""
    found = divergences.measure(["reverse-kl", "forward-kl"], seeds=2)
    for student in found["reverse-kl"]:
        assert student["modes"] == 3
        assert student["inside"] > 0.9
    for student in found["forward-kl"]:
        assert student["modes"] == 5
        assert student["inside"] < 0.7
        # each is the better one in what it was trained for
        for other in found["reverse-kl"]:
            assert student["divergences"]["forward-kl"] < 0.2 * other["divergences"]["forward-kl"]
            assert other["divergences"]["reverse-kl"] < 0.2 * student["divergences"]["reverse-kl"]


@pytest.mark.slow
def test_a_student_of_enough_parts_becomes_the_teacher():
    """With nothing to choose between, every divergence leads to the same student."""
    teacher = Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([[0.4, -0.3]], [[0.8, 0.6]], [1.0])))
    for name in ("reverse-kl", "forward-kl", "js"):
        student = divergences.distil(DIVERGENCES[name], teacher, parts=1, steps=250)
        torch.testing.assert_close(student.means.detach(), teacher.means, rtol=0, atol=0.05)
        torch.testing.assert_close(student.log_stds.exp().detach(), teacher.stds, rtol=0.1, atol=0)


def test_the_mixture_is_exact():
    """Density of one Gaussian in closed form; the score of the posterior mean is the slope of the log-density."""
    path, t = LinearPath(), torch.tensor([0.3, 0.8], dtype=torch.float64)
    one = Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([[0.4, -0.3]], [[0.8, 0.6]], [1.0])))
    x = torch.tensor([[0.1, 0.2], [-1.0, 0.5]], dtype=torch.float64)
    std = torch.hypot(path.alpha(t)[:, None] * one.stds, path.sigma(t)[:, None])
    expected = torch.distributions.Normal(path.alpha(t)[:, None] * one.means, std).log_prob(x).sum(1)
    torch.testing.assert_close(one.log_prob(x, path, t), expected)
    for path in (LinearPath(), EDMPath(5.0)):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(ring().log_prob(x, path, t).sum(), x)
        torch.testing.assert_close(ring().model(path).predict(x, t).score, slope)


def test_the_students_density_is_that_of_its_samples():
    student = MixtureStudent(torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64), 0.5)
    part = torch.arange(20_000) % 2
    x = student(part, torch.randn(20_000, 2, dtype=torch.float64))
    grid, area = divergences._grid()
    mass = student.density.log_prob(grid, LinearPath(), torch.zeros((), dtype=torch.float64)).exp() * area
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close((mass[:, None] * grid).sum(0), x.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close((mass[:, None] * grid.square()).sum(0), x.square().mean(0), rtol=0.03, atol=0)


def test_counts_and_values():
    teacher = ring(4)
    assert modes_covered(teacher, teacher) == 4
    assert divergences.mass_in_modes(teacher, teacher) == pytest.approx(1 - math.exp(-(2.5**2) / 2), abs=0.01)
    two = Mixture(teacher.means[:2], teacher.stds[:2], torch.tensor([0.9, 0.1], dtype=torch.float64))
    assert modes_covered(teacher, two) == 2
    assert modes_covered(teacher, two, share=0.5) == 1
    assert divergence_values(teacher, teacher) == pytest.approx({n: 0 for n in DIVERGENCES if n != "neyman"}, abs=1e-9)
    half = Mixture(teacher.means[:2], teacher.stds[:2], torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert divergence_values(teacher, half)["reverse-kl"] == pytest.approx(math.log(2), rel=1e-3)


def test_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(
        divergences, "measure", lambda names, seeds, measure=divergences.measure: measure(names, seeds, steps=2)
    )
    divergences.main(["js", "neyman"], 2, tmp_path / "a.json", tmp_path / "a.png")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["trained", "js", "neyman"]
    found = json.loads((tmp_path / "a.json").read_text())
    assert len(found["js"]) == 2
    assert found["js"][0]["means"] != found["js"][1]["means"]
    assert lines[1].split()[1] == f"{sum(student['modes'] for student in found['js']) / 2:.1f}"
    assert Image.open(tmp_path / "a.png").size[0] > 500
    with pytest.raises(InputError, match="divergence: 'kl' is not known"):
        divergences.main(["kl"], 2)
    with pytest.raises(InputError, match="seeds: got 0"):
        divergences.main(["js"], 0)
