"""f-distill's recipes, a student's levels, the laws of the times, and what a run reports."""

import numpy as np
import pytest
import torch
import yaml

from genflow import assets
from genflow.distillation import DIVERGENCES, FDistillRecipe
from genflow.distillation.f_distill_recipe import TimesSection, load_f_distill_recipe
from genflow.distillation.f_distill_report import CollapseWatch, StepValues
from genflow.distillation.f_distill_times import TimeSampler, student_levels
from genflow.errors import DivergedError, InputError, NonFiniteError
from genflow.schedulers import family_from_config

FLOW = family_from_config({"shift": 1.0})
EDM = family_from_config({"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0})
BETA = family_from_config({"beta_schedule": "scaled_linear"})


def test_shipped_recipes():
    for name in assets.recipes("distill"):
        recipe = load_f_distill_recipe(name)
        assert FDistillRecipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe
    assert load_f_distill_recipe("fashion-mnist") == load_f_distill_recipe("fashion-mnist-f-distill")
    changed = load_f_distill_recipe("fashion-mnist", ["divergence=neyman", "gan.r1_weight=100"])
    assert (changed.divergence, changed.gan.r1_weight) == ("neyman", 100)
    assert not set(assets.recipes("distill")) & set(assets.recipes())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_data_are_wanted_by_all_but_reverse_kl(divergence):
    def build():
        return load_f_distill_recipe("somewhere", [f"divergence={divergence}"])

    if divergence == "reverse-kl":
        assert build().teacher.model == "somewhere"
        assert not build().needs_discriminator
    else:
        with pytest.raises(InputError, match=f"^f-distill: data.source: None; divergence '{divergence}'"):
            build()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["divergence=jsd"], "divergence: .*did you mean 'js'"),
        (["steps=2", "student_times=[0.5, 0.7]"], r"^f-distill: student_times: got \[0.5, 0.7\]; allowed: 2"),
        (["student_times=[1.0, 0.7]"], "student_times: .*allowed: 1"),
        (["student_times=[0.0]"], "student_times.0: got 0"),
        (["student_every=1"], "student_every: got 1"),
        (["gan.wieght=1"], "unknown key 'gan.wieght'.*did you mean 'weight'"),
        (["ratio.lowest=30"], "ratio.lowest: got 30"),
        (["times.earliest=0.5", "times.latest=0.4"], "times.earliest: got 0.5; allowed: less than latest 0.4"),
        (["times.distribution=normal"], "times.distribution: got 'normal'"),
        (["teacher.guidance_scale=-1"], "teacher.guidance_scale: got -1"),
        (["precision=fp16"], "precision: got 'fp16'"),
        (["fake_optimizer.lr=0"], "fake_optimizer.lr: got 0"),
    ],
)
def test_faults(changes, message):
    with pytest.raises(InputError, match=message):
        load_f_distill_recipe("somewhere", ["data.source=x", *changes])


def test_levels():
    assert student_levels(FLOW, 1) == student_levels(EDM, 1) == student_levels(BETA, 1) == [1.0]
    assert student_levels(FLOW, 4) == [1.0, 0.75, 0.5, 0.25]
    assert student_levels(BETA, 2) == [1.0, 0.5]
    shifted = student_levels(family_from_config({"shift": 3.0}), 2)
    assert shifted == [1.0, pytest.approx(0.75)]
    levels = 80 * np.array(student_levels(EDM, 3))
    roots = levels ** (1 / 7)
    assert levels[0] == 80
    np.testing.assert_allclose(roots, 0.002 ** (1 / 7) + np.array([3, 2, 1]) / 3 * (roots[0] - 0.002 ** (1 / 7)))


@pytest.mark.parametrize("family", [FLOW, EDM, BETA], ids=["flow", "edm", "beta"])
@pytest.mark.parametrize("distribution", ["uniform", "karras", "log-normal"])
def test_times_have_the_law_they_are_called_by(family, distribution):
    sampler = TimeSampler(TimesSection(distribution=distribution, mean=-1.0, std=0.5), family)
    t = sampler.draw(40_000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.float64
    assert sampler.earliest <= t.min()
    assert t.max() <= sampler.latest
    level = family.path.noise_level(t)
    if distribution == "log-normal":
        assert level.log().mean().item() == pytest.approx(-1.0, abs=0.02)
        assert level.log().std().item() == pytest.approx(0.5, abs=0.02)
        return
    place = t if distribution == "uniform" else level ** (1 / 7)
    ends = (sampler.earliest, sampler.latest)
    low, high = ends if distribution == "uniform" else (sampler.lowest ** (1 / 7), sampler.highest ** (1 / 7))
    quantiles = torch.quantile((place - low) / (high - low), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), atol=0.01, rtol=0)


def test_times_by_default():
    assert TimeSampler(TimesSection(), FLOW).distribution == "uniform"
    edm = TimeSampler(TimesSection(), EDM)
    assert edm.distribution == "karras"
    assert (edm.lowest, edm.highest) == (pytest.approx(0.002), pytest.approx(80.0))
    with pytest.raises(InputError, match="times: 0.5 to 1.0, of noise level"):
        TimeSampler(TimesSection(earliest=0.5, latest=1.0), FLOW)


def test_values_are_averaged_over_their_own_steps():
    values = StepValues()
    for step, loss in ((1, 2.0), (2, 4.0)):
        values.add(step, {"fake_loss": torch.tensor(loss), "generated": torch.tensor(1.0)})
    values.add(3, {"student_loss": torch.tensor(5.0)})
    assert values.take(lambda x: x, None) == {"fake_loss": 3.0, "student_loss": 5.0}
    assert values.take(lambda x: x, None) == {}
    values.add(4, {"fake_loss": torch.tensor(1.0)})
    values.add(5, {"fake_loss": torch.tensor(float("inf")), "discriminator_norm": torch.tensor(float("nan"))})
    with pytest.raises(NonFiniteError, match=r"the fake score gave inf \(fake_loss\) at step 5; .* is none"):
        values.take(lambda x: x, None)


def test_collapse_is_so_many_reports_in_a_row():
    watch = CollapseWatch(2)
    bad = {"saturated": 0.995, "real_logit": 9.0, "fake_logit": -9.0}
    for row in (bad, {**bad, "saturated": 0.5}, {"student_loss": 1.0}, bad):
        watch.look(row, 1, None)
    assert watch.suspects
    with pytest.raises(DivergedError, match=r"collapsed at step 7: for 2 reports 100 %.*real 9.0, fake -9.0"):
        watch.look(bad, 7, None)
    CollapseWatch(0).look(bad, 1, None)
