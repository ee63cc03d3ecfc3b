"""What diffusers' pipelines rely on, for every scheduler of the registry on every family of configs."""

import json

import diffusers
import numpy as np
import pytest
import torch

from genflow.errors import InputError
from genflow.guidance import GUIDANCES, create_guidance
from genflow.schedulers import SCHEDULERS, create_scheduler

TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
SPACINGS = {
    "beta": [
        {},
        *({"timestep_spacing": name, "steps_offset": 1} for name in ("leading", "linspace", "trailing")),
        *({key: True} for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")),
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"final_sigmas_type": "sigma_min"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    "flow": [
        {},
        {"shift": 1.0, "timestep_spacing": "linspace"},
        *({key: True} for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")),
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"shift_terminal": 0.1},
    ],
    "edm": [{}, {"sigma_schedule": "exponential"}, {"rho": 5.0}, {"sigma_max": 20.0}],
}


def seeds(count):
    return [torch.Generator().manual_seed(100 + index) for index in range(count)]  # not those of the start


def test_every_family_is_refused_by_none_but_those_that_say_so():
    """The tests of this file leave out what a scheduler refuses; this one counts what was left out."""
    families = ({"beta_schedule": "linear"}, {"shift": 3.0}, {"sigma_data": 0.5, "sigma_max": 80.0})
    refused = set()
    for name in SCHEDULERS:
        for family, config in zip(("beta", "flow", "edm"), families, strict=True):
            try:
                create_scheduler(name, None, **config)
            except InputError:
                refused.add((name, family))
    assert refused <= {("pfgm++", "beta"), ("pfgm++", "flow")}


def test_arrives_where_the_ode_does(combo, lab):
    """Gaussian data, exact network, 40 steps: the closed form, or in law where the solver draws noise."""
    if combo.name == "one-step":
        pytest.skip("samples a student; on a network of means it gives means, see test_one_step.py")
    for options in SPACINGS[combo.family]:
        scheduler = combo.make(**options)
        mu = {"mu": 1.1} if options.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(40, **mu)
        x = scheduler.init_noise_sigma * lab.noise(shape=(2, 3, 16, 16))
        result = lab.run(scheduler, x, generator=seeds(2))
        assert torch.isfinite(result).all(), options
        if scheduler.make_solver().stochastic:
            # a weak order of 1 with noise renewed at every step: 40 steps are few
            assert 0.7 < result.std().item() / lab.std < 1.15, options
            continue
        # the last step to a table's lowest level leaves that much noise; the first down from a cosine's level of 20,000
        # and beta's few levels at the ends are long ones
        rough = {"sigma_min", "squaredcos_cap_v2"} & {*options.values()} or options.get("use_beta_sigmas")
        tolerance = 0.15 if rough else 0.07
        assert (result - lab.exact(scheduler, x)).abs().mean() < tolerance * lab.std, options


def test_every_prediction_type_gives_the_same_run(combo, lab):
    results = {}
    for kind in TYPES:
        if combo.family == "edm" and kind == "flow_prediction":
            continue
        scheduler = combo.make(prediction_type=kind)
        # a flow from pure noise has no epsilon to start from
        arguments = {"sigmas": np.linspace(0.9, 0.1, 6)} if combo.family == "flow" else {"num_inference_steps": 6}
        scheduler.set_timesteps(**arguments)
        x = scheduler.init_noise_sigma * lab.noise(dtype=torch.float64)
        results[kind] = lab.run(scheduler, x, generator=seeds(2))
    for kind, result in results.items():
        torch.testing.assert_close(result, results["sample"], rtol=1e-3, atol=1e-4, msg=lambda m, k=kind: f"{k}: {m}")


def test_pure_noise_and_epsilon_is_refused_by_name(combo):
    if combo.family == "edm":
        pytest.skip("EDM's alpha is 1 throughout")
    options = {} if combo.family == "flow" else {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(InputError, match="prediction_type: 'epsilon'"):
        combo.make(prediction_type="epsilon", **options).set_timesteps(4)


def test_begins_anywhere_that_a_pipeline_may(combo, lab):
    """Image-to-image cuts the schedule at a multiple of ``order``: with and without set_begin_index, same run, from
    there to the right end; and momentum or history of an earlier run is gone."""
    steps = 12
    for step in (0, 3, 9):
        results = []
        for announced in (True, False, True):
            scheduler = combo.make()
            scheduler.set_timesteps(steps)
            lab.run(scheduler, lab.noise(9), generator=seeds(2))  # an earlier run
            scheduler.set_timesteps(steps)
            begin = step * scheduler.order
            if announced:
                scheduler.set_begin_index(begin)
            t = float(scheduler.times[begin])
            law = (scheduler.path.alpha(t) ** 2 * lab.std**2 + scheduler.path.sigma(t) ** 2) ** 0.5
            x = law * lab.noise(1)
            results.append(lab.run(scheduler, x, begin, seeds(2)))
            assert scheduler.step_index == len(scheduler.timesteps)
            assert scheduler.begin_index == (begin if announced else None)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        if not scheduler.make_solver().stochastic:
            assert (results[0] - lab.exact(scheduler, x, begin)).abs().mean() < 0.2 * lab.std


def test_one_step(combo, lab):
    """One evaluation from pure noise gives the network's own x0."""
    scheduler = combo.make()
    scheduler.set_timesteps(1)
    x = scheduler.init_noise_sigma * lab.noise()
    t = scheduler.timesteps[0]
    output = scheduler.step(lab.network(scheduler, x, t), t, x, generator=seeds(2))
    if len(scheduler.timesteps) == 1 and not scheduler.make_solver().stochastic:
        torch.testing.assert_close(output.prev_sample, output.pred_original_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_image_does_not_depend_on_its_batch(combo, lab, dtype):
    def images(rows):
        scheduler = combo.make()
        scheduler.set_timesteps(5)
        x = (scheduler.init_noise_sigma * lab.noise(shape=(3, 3, 4, 4)))[rows].to(dtype)
        return lab.run(scheduler, x, generator=[torch.Generator().manual_seed(row) for row in rows])

    together = images([0, 1, 2])
    assert together.dtype == dtype
    assert torch.isfinite(together.float()).all()
    for row in range(3):
        torch.testing.assert_close(images([row]), together[row : row + 1], rtol=1e-5, atol=1e-5)


def test_generators_of_the_wrong_number(combo, lab):
    scheduler = combo.make()
    scheduler.set_timesteps(3)
    x, t = lab.noise(shape=(3, 3, 4, 4)), scheduler.timesteps[0]
    if not combo.stochastic:
        scheduler.step(x, t, x, generator=seeds(2))  # nothing is drawn, nothing is asked of it
        return
    with pytest.raises(InputError, match="generator: 2 for a batch of 3"):
        scheduler.step(x, t, x, generator=seeds(2))


@pytest.mark.parametrize("guidance", [None, *GUIDANCES])
def test_no_step_waits_for_the_device(combo, guidance):
    """On the meta device any read of a value raises: the whole run, prediction and guidance included, reads none.

    This holds without set_begin_index too, as DDIM's and Stable Diffusion's loops run: by turns.
    """
    scheduler = combo.make()
    scheduler.set_timesteps(4, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    if (list(SCHEDULERS).index(combo.name) + [None, *GUIDANCES].index(guidance)) % 2:
        scheduler.set_begin_index(0)
    rule = guidance and create_guidance(guidance, scale=[3.0, 7.0], rescale=0.5, stop=0.9)
    if rule:
        rule.reset(4)
    x = torch.empty(2, 3, 4, 4, dtype=torch.bfloat16, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        x.max().item()  # the instrument works
    for i, t in enumerate(scheduler.timesteps):
        output = scheduler.scale_model_input(x, t)
        level, step = scheduler.path.noise_level(float(scheduler.times[i])), int(scheduler.step_of[i])
        if rule and rule.is_active(level, step):
            cond, uncond = scheduler.predict(output, t, x), scheduler.predict(-output, t, x)
            output = cond.replace(rule(cond.x0, uncond.x0, x, level, step))
        x = scheduler.step(output, t, x, return_dict=False)[0]
    assert x.shape == (2, 3, 4, 4)
    assert scheduler.step_index == len(scheduler.timesteps)


def test_saved_loaded_and_made_from_each_other(combo, tmp_path, lab):
    scheduler = combo.make()
    scheduler.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    scheduler.set_timesteps(5)
    x = scheduler.init_noise_sigma * lab.noise()
    expected = lab.run(scheduler, x, generator=seeds(2))
    for other in (type(scheduler).from_pretrained(tmp_path), type(scheduler).from_config(scheduler.config)):
        other.set_timesteps(5)
        assert torch.equal(lab.run(other, x, generator=seeds(2)), expected)


THEIRS = {
    "beta": diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, beta_schedule="scaled_linear"),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "edm": diffusers.EDMEulerScheduler(),
}


def test_takes_the_place_of_a_diffusers_scheduler_and_gives_it_back(combo):
    theirs = THEIRS[combo.family]
    cls = type(combo.make())
    ours = cls.from_config(theirs.config)
    ours.set_timesteps(6)
    back = type(theirs).from_config(ours.config)
    ignored = ("timestep_spacing",) if combo.family == "flow" else ("lambda_min_clipped",)
    for key, value in theirs.config.items():
        if not key.startswith("_") and key not in ignored:
            assert back.config[key] == value, key


BAD = [
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_inference_steps": -3}, "num_inference_steps"),
    ({"num_inference_steps": 2.5}, "num_inference_steps"),
    ({"sigmas": [0.5, float("nan")]}, "sigmas"),
    ({"sigmas": [0.5, 0.7]}, "sigmas"),
    ({"timesteps": [1.0, 3.0]}, "timesteps"),
    ({"timesteps": [3.0, 3.0]}, "timesteps"),
    ({"timesteps": [float("nan")]}, "timesteps"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_schedules(combo, arguments, message):
    with pytest.raises(InputError, match=message):
        combo.make().set_timesteps(**arguments)


def test_bad_configs_and_begin_indices(combo):
    with pytest.raises(InputError, match="prediction_type"):
        combo.make(prediction_type="noise")
    with pytest.raises(InputError, match="prediction_type: None"):
        combo.make(prediction_type=None)
    with pytest.raises(InputError, match="not known"):
        combo.make(no_such_option=1)
    scheduler = combo.make()
    for value in (-1, 1.5):
        with pytest.raises(InputError, match="begin_index"):
            scheduler.set_begin_index(value)
