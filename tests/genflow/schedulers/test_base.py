"""The clock, the conventions and the errors of the base class."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.prediction import Prediction
from genflow.schedulers import RectifiedFlowScheduler
from genflow.schedulers.grids import karras_levels

FLOW = {"shift": 3.0}
BETA = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EDM = {"sigma_data": 0.5, "sigma_max": 80.0}
FAMILIES = [FLOW, BETA, EDM]
SHAPE = (2, 3, 4, 4)


def noise(seed=0, dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian_output(scheduler, x, timestep, std=0.5):
    """The exact network for normal(0, std^2) data, in the scheduler's own prediction type."""
    t = float(scheduler.family.time(float(timestep)))
    alpha, sigma = scheduler.path.alpha(t), scheduler.path.sigma(t)
    x0 = alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x
    return scheduler.family.model_output(Prediction(x0, "sample", x, scheduler.path, t))


def run(scheduler, x, timesteps=None):
    for t in scheduler.timesteps if timesteps is None else timesteps:
        x = scheduler.step(gaussian_output(scheduler, x, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_converges_to_the_closed_form_at_its_order(config, solver, order):
    """Gaussian data: the ODE's map is a scaling by std / sqrt(alpha^2 std^2 + sigma^2)."""
    errors, counts = [], [40, 80, 160]
    for steps in counts:
        scheduler = RectifiedFlowScheduler(solver=solver, **config)
        if config is BETA:  # the last step from a table's own lowest level to 0 does not shrink with more steps
            scheduler.set_timesteps(sigmas=karras_levels(0.002, 14.0, steps))
        else:
            scheduler.set_timesteps(steps)
        x = scheduler.init_noise_sigma * noise(dtype=torch.float64)
        t = float(scheduler.times[0])
        exact = x * 0.5 / (scheduler.path.alpha(t) ** 2 * 0.25 + scheduler.path.sigma(t) ** 2) ** 0.5
        result = run(scheduler, x)
        assert result.dtype == torch.float64
        errors.append((result - exact).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope > order - 0.25


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_counts(config, solver):
    scheduler = RectifiedFlowScheduler(solver=solver, **config)
    scheduler.set_timesteps(5)
    evaluations = 5 if solver == "euler" else 9
    assert len(scheduler.timesteps) == evaluations
    assert len(scheduler.sigmas) == evaluations + 1
    assert scheduler.num_inference_steps == 5
    assert scheduler.order == (1 if solver == "euler" else 2)
    assert scheduler.sigmas[-1] == 0
    assert len(scheduler) == 1000
    assert scheduler.step_index is None
    run(scheduler, noise())
    assert scheduler.step_index == evaluations


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("with_begin_index", [False, True])
def test_starting_in_the_middle_continues_the_trajectory(config, solver, with_begin_index):
    """image-to-image: from step 2 of 5, with and without set_begin_index, through Heun's doubled timesteps."""
    scheduler = RectifiedFlowScheduler(solver=solver, **config)
    scheduler.set_timesteps(5)
    begin = 2 * scheduler.order
    x = scheduler.init_noise_sigma * noise()
    middle = run(scheduler, x, scheduler.timesteps[:begin])
    whole = run(scheduler, middle, scheduler.timesteps[begin:])
    scheduler.set_timesteps(5)
    if with_begin_index:
        scheduler.set_begin_index(begin)
    again = run(scheduler, middle, scheduler.timesteps[begin:])
    assert scheduler.begin_index == (begin if with_begin_index else None)
    torch.testing.assert_close(again, whole, rtol=1e-6, atol=1e-6)


def test_second_of_two_equal_timesteps_opens_a_step():
    scheduler = RectifiedFlowScheduler(solver="heun")
    scheduler.set_timesteps(4)
    assert [scheduler.index_for_timestep(t) for t in scheduler.timesteps] == [0, 2, 2, 4, 4, 6, 6]


@pytest.mark.parametrize("config", FAMILIES)
def test_noise_at_per_sample_timesteps(config):
    scheduler = RectifiedFlowScheduler(**config)
    scheduler.set_timesteps(10)
    x, eps = noise(1), noise(2)
    timesteps = scheduler.timesteps[torch.tensor([2, 7])]
    both = scheduler.add_noise(x, eps, timesteps)
    for i in range(2):
        one = scheduler.scale_noise(x[i : i + 1], timesteps[i : i + 1], eps[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], one)
    # one timestep for the whole batch, as a number, a scalar and a list of one
    for t in (float(timesteps[0]), timesteps[0], timesteps[:1]):
        torch.testing.assert_close(scheduler.add_noise(x, eps, t)[:1], both[:1], rtol=1e-5, atol=1e-5)
    assert scheduler.add_noise(x.bfloat16(), eps.bfloat16(), timesteps).dtype == torch.bfloat16


@settings(deadline=None, max_examples=40)
@given(
    config=st.sampled_from(FAMILIES),
    spacing=st.sampled_from(["leading", "linspace", "trailing"]),
    bend=st.sampled_from([None, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]),
    steps=st.integers(1, 60),
    shift=st.floats(0.2, 12),
    solver=st.sampled_from(["euler", "heun"]),
)
def test_any_schedule_is_consistent(config, spacing, bend, steps, shift, solver):
    config = dict(config)
    if "shift" in config:
        config |= {"shift": shift, "timestep_spacing": "trailing" if spacing == "leading" else spacing}
    elif "beta_schedule" in config:
        config |= {"timestep_spacing": spacing, "steps_offset": 1}
    if bend and "sigma_data" not in config:
        config[bend] = True
    scheduler = RectifiedFlowScheduler(solver=solver, **config)
    scheduler.set_timesteps(steps)
    sigmas, timesteps = scheduler.sigmas.double(), scheduler.timesteps.double()
    assert torch.isfinite(sigmas).all()
    assert torch.isfinite(timesteps).all()
    assert sigmas[-1] == 0
    drops = sigmas[:-1] - sigmas[1:]
    assert (drops >= 0).all()
    assert int((drops > 0).sum()) == steps  # Heun's pairs repeat a sigma; nothing else does
    # sigmas and timesteps say the same
    times = scheduler.family.time(timesteps)
    levels = torch.from_numpy(scheduler.family.sigma(times.numpy()))
    torch.testing.assert_close(levels, sigmas[:-1], rtol=2e-4, atol=1e-6)
    # noise added at step i lands on the trajectory: alpha x0 + sigma eps, in the coordinates of the samples
    x, eps = torch.ones(1, 1), torch.full((1, 1), 2.0)
    index = steps // 2 * scheduler.order if steps > 1 else 0
    index = min(index, len(timesteps) - 1)
    noisy = scheduler.add_noise(x, eps, scheduler.timesteps[index])
    t = float(scheduler.times[index])
    expected = scheduler.path.alpha(t) + 2 * scheduler.path.sigma(t)
    assert noisy.item() == pytest.approx(expected, rel=1e-4)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), shift=st.floats(0.5, 6))
def test_custom_sigmas_are_shifted_once_and_timesteps_never(data, shift):
    """diffusers issues 13243 and 14013."""
    values = data.draw(st.lists(st.integers(1, 1000), min_size=1, max_size=8, unique=True))
    sigmas = np.sort(np.array(values) / 1000)[::-1]
    scheduler = RectifiedFlowScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    shifted = shift * sigmas / (1 + (shift - 1) * sigmas)
    np.testing.assert_allclose(scheduler.sigmas[:-1].numpy(), shifted, rtol=1e-5)
    np.testing.assert_allclose(scheduler.timesteps.numpy(), 1000 * shifted, rtol=1e-5)
    given_timesteps = scheduler.timesteps.tolist()
    scheduler.set_timesteps(timesteps=given_timesteps)
    assert scheduler.timesteps.tolist() == pytest.approx(given_timesteps, rel=1e-6)
    np.testing.assert_allclose(scheduler.sigmas[:-1].numpy(), shifted, rtol=1e-5)


def test_full_training_schedule_before_and_after_set_timesteps_agree():
    scheduler = RectifiedFlowScheduler(shift=3.0, timestep_spacing="linspace")
    before = scheduler.sigmas.clone()
    scheduler.set_timesteps(1000)
    torch.testing.assert_close(scheduler.sigmas, before)


def test_a_last_zero_sigma_is_the_end_point():
    for config, sigmas in ((FLOW, [1.0, 0.5]), (BETA, [14.6, 1.0]), (EDM, [80.0, 2.0])):
        scheduler = RectifiedFlowScheduler(**config)
        scheduler.set_timesteps(sigmas=sigmas)
        expected = scheduler.sigmas.tolist()
        scheduler.set_timesteps(sigmas=[*sigmas, 0.0])
        assert scheduler.sigmas.tolist() == expected
        assert scheduler.num_inference_steps == 2


def test_published_sigmas_that_are_rounded_up():
    scheduler = RectifiedFlowScheduler(**BETA)
    scheduler.set_timesteps(sigmas=[14.615, 6.475, 0.152, 0.0])  # the table ends at 14.6146
    assert scheduler.timesteps[0] == pytest.approx(999)


def test_half_precision_pipelines_keep_the_state_in_full(monkeypatch):
    """The rounded tensor that step() gave, handed back untouched, stands for the float32 state behind it."""
    x, out = noise(1).bfloat16(), 1e-3 * noise(2).bfloat16()

    def end(tamper):
        scheduler = RectifiedFlowScheduler()
        scheduler.set_timesteps(200)
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(out, t, state).prev_sample
            assert state.dtype == torch.bfloat16
            if tamper == "copy":
                state = state.clone()
            elif tamper == "edit":
                state.add_(1.0)
        return state.float()

    exact = x.float() - out.float()
    assert (end(None) - exact).abs().max() < 0.02
    # a pipeline that changes the sample, in place or not, is obeyed
    assert (end("copy") - exact).abs().max() > (end(None) - exact).abs().max() - 1e-6
    assert (end("edit") - exact).mean() > 100


def test_inference_mode_works():
    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(3)
    with torch.inference_mode():
        state = noise().bfloat16()
        for t in scheduler.timesteps:
            state = scheduler.step(state * 0.1, t, state).prev_sample
    assert torch.isfinite(state.float()).all()


def test_step_takes_a_prediction_and_gives_x0():
    scheduler = RectifiedFlowScheduler(**BETA)
    scheduler.set_timesteps(5)
    x, out, t = noise(1), noise(2), scheduler.timesteps[0]
    prediction = scheduler.predict(out, t, x)
    guided = prediction.replace(prediction.x0)
    from_prediction = scheduler.step(guided, t, x)
    scheduler.set_timesteps(5)
    from_output, x0 = scheduler.step(out, t, x, return_dict=False)
    torch.testing.assert_close(from_prediction.prev_sample, from_output, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(from_prediction.pred_original_sample, x0)


@pytest.mark.parametrize("config", FAMILIES)
def test_model_output_inverts_predict(config):
    scheduler = RectifiedFlowScheduler(**config)
    scheduler.set_timesteps(5)
    out = noise(3)
    prediction = scheduler.predict(out, scheduler.timesteps[2], noise(4))
    torch.testing.assert_close(scheduler.family.model_output(prediction), out, rtol=1e-4, atol=1e-4)


def test_learned_variance_channels_are_dropped():
    scheduler = RectifiedFlowScheduler(**BETA)
    scheduler.set_timesteps(5)
    out, t = noise(3), scheduler.timesteps[0]
    plain = scheduler.step(out, t, noise()).prev_sample
    scheduler.set_timesteps(5)
    assert torch.equal(scheduler.step(torch.cat([out, out], 1), t, noise()).prev_sample, plain)


class Untouchable(torch.Tensor):
    """A timestep that may not be read on the host."""

    def __float__(self):
        raise AssertionError("a step read its timestep: that waits for the device")

    item = tolist = __float__


@pytest.mark.parametrize("config", FAMILIES)
def test_no_host_read_inside_a_step_once_the_begin_index_is_set(config):
    scheduler = RectifiedFlowScheduler(**config)
    scheduler.set_timesteps(3)
    scheduler.set_begin_index(0)
    x = noise()
    for t in scheduler.timesteps:
        t = t.as_subclass(Untouchable)
        scheduler.scale_model_input(x, t)
        x = scheduler.step(x * 0.1, t, x).prev_sample
    assert scheduler.step_index == 3


def test_zero_terminal_snr():
    config = {**BETA, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = RectifiedFlowScheduler(prediction_type="v_prediction", **config)
    scheduler.set_timesteps(4)
    assert torch.isfinite(run(scheduler, noise())).all()
    with pytest.raises(InputError, match="epsilon"):
        RectifiedFlowScheduler(**config).set_timesteps(4)
    karras = RectifiedFlowScheduler(prediction_type="v_prediction", use_karras_sigmas=True, **config)
    karras.set_timesteps(4)
    assert karras.sigmas[0] == pytest.approx(4096)


BAD_TIMESTEPS = [
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_inference_steps": 2.5}, "num_inference_steps"),
    ({"num_inference_steps": "ten"}, "num_inference_steps"),
    ({}, "num_inference_steps"),
    ({"sigmas": [1.0, 0.5], "timesteps": [999.0]}, "both"),
    ({"sigmas": [0.5, 0.7]}, "descending"),
    ({"sigmas": [0.5, 0.5]}, "descending"),
    ({"sigmas": [0.5, float("nan")]}, "finite"),
    ({"sigmas": []}, "sigmas"),
    ({"sigmas": [0.0]}, "sigmas"),
    ({"sigmas": [0.5, -0.1]}, "sigmas"),
    ({"sigmas": [1e9, 1.0]}, "at most"),
    ({"timesteps": [1e9, 1.0]}, "timesteps"),
    ({"timesteps": [1.0, 3.0]}, "timesteps"),
    ({"num_inference_steps": 3, "sigmas": [0.5, 0.25]}, "3"),
]


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize(("arguments", "message"), BAD_TIMESTEPS)
def test_bad_timesteps(config, arguments, message):
    with pytest.raises(InputError, match=message):
        RectifiedFlowScheduler(**config).set_timesteps(**arguments)


def test_more_steps_than_the_table_has():
    with pytest.raises(InputError, match="num_inference_steps"):
        RectifiedFlowScheduler(timestep_spacing="trailing", **BETA).set_timesteps(1001)


BAD_CONFIGS = [
    ({"solver": "rk9"}, "solver"),
    ({"shfit": 3.0}, "did you mean 'shift'"),
    ({"shift": 0.0}, "shift"),
    ({"shift": 2.0, "flow_shift": 3.0}, "disagree"),
    ({"prediction_type": "velocity"}, "prediction_type"),
    ({"invert_sigmas": True}, "invert_sigmas"),
    ({"shift": 1.0, "timestep_spacing": "leading"}, "timestep_spacing"),
    ({"shift": 1.0, "use_karras_sigmas": True, "use_beta_sigmas": True}, "only one"),
    ({"beta_schedule": "cosine"}, "beta_schedule"),
    ({"beta_start": 0.0}, "beta_start"),
    ({"trained_betas": [0.1, 2.0]}, "trained_betas"),
    ({"beta_schedule": "linear", "timestep_spacing": "tailing"}, "did you mean 'trailing'"),
    ({**EDM, "sigma_max": 0.001}, "sigma_max"),
    ({**EDM, "prediction_type": "flow_prediction"}, "prediction_type"),
    ({**EDM, "sigma_schedule": "linear"}, "sigma_schedule"),
    ({"shift": 1.0, "num_train_timesteps": 0}, "num_train_timesteps"),
]


@pytest.mark.parametrize(("config", "message"), BAD_CONFIGS)
def test_bad_configs(config, message):
    with pytest.raises(InputError, match=message):
        RectifiedFlowScheduler(**config)


def test_too_many_positional_arguments():
    with pytest.raises(InputError, match="7 positional arguments"):
        RectifiedFlowScheduler("euler", *range(6))


def test_dynamic_shift_needs_mu():
    scheduler = RectifiedFlowScheduler(use_dynamic_shifting=True)
    with pytest.raises(InputError, match="mu"):
        scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="mu"):
        scheduler.set_timesteps(4, mu=float("nan"))


def test_steps_out_of_turn():
    scheduler = RectifiedFlowScheduler()
    with pytest.raises(InputError, match="set_timesteps"):
        scheduler.step(noise(), 1000.0, noise())
    scheduler.set_timesteps(2)
    with pytest.raises(InputError, match="777"):
        scheduler.step(noise(), 777.0, noise())
    run(scheduler, noise())
    with pytest.raises(InputError, match="over"):
        scheduler.step(noise(), scheduler.timesteps[0], noise())


@pytest.mark.parametrize("config", [*FAMILIES, {"trained_betas": np.linspace(1e-4, 2e-2, 50)}])
def test_saved_and_loaded(config, tmp_path):
    scheduler = RectifiedFlowScheduler(solver="heun", **config)
    scheduler.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    loaded = RectifiedFlowScheduler.from_pretrained(tmp_path)
    assert loaded.config.solver == "heun"
    for one in (loaded, RectifiedFlowScheduler.from_config(scheduler.config)):
        assert one.family.config == scheduler.family.config
        one.set_timesteps(6)
        scheduler.set_timesteps(6)
        assert torch.equal(one.timesteps, scheduler.timesteps)
        assert torch.equal(one.sigmas, scheduler.sigmas)
