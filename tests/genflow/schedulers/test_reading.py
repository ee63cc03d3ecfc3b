"""Configs of diffusers' schedulers, read into families."""

import diffusers
import pytest

from genflow.errors import InputError
from genflow.schedulers import SCHEDULERS, RectifiedFlowScheduler, create_scheduler, family_from_config

BETA = "beta"
FAMILY_OF = {
    "CogVideoXDDIMScheduler": BETA,
    "DDIMInverseScheduler": BETA,
    "DDIMScheduler": BETA,
    "DDPMScheduler": BETA,
    "DEISMultistepScheduler": BETA,
    "DPMSolverMultistepScheduler": BETA,
    "DPMSolverSinglestepScheduler": BETA,
    "EDMDPMSolverMultistepScheduler": "edm",
    "EDMEulerScheduler": "edm",
    "EulerAncestralDiscreteScheduler": BETA,
    "EulerDiscreteScheduler": BETA,
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
    "HeunDiscreteScheduler": BETA,
    "LCMScheduler": BETA,
    "LMSDiscreteScheduler": BETA,
    "PNDMScheduler": BETA,
    "SASolverScheduler": BETA,
    "UnCLIPScheduler": BETA,
    "UniPCMultistepScheduler": BETA,
}


@pytest.mark.parametrize("name", FAMILY_OF)
def test_every_scheduler_of_diffusers(name, tmp_path):
    theirs = getattr(diffusers, name)()
    theirs.save_pretrained(tmp_path)
    loaded = getattr(diffusers, name).from_pretrained(tmp_path)
    for config in (theirs.config, loaded.config):
        ours = RectifiedFlowScheduler.from_config(config)
        assert ours.family.name == FAMILY_OF[name]
        assert family_from_config(config).config == ours.family.config
        ours.set_timesteps(4)
    # and back, with nothing lost that the class understands (and no flow's timestep spacing)
    back = getattr(diffusers, name).from_config(ours.config)
    ignored = ("timestep_spacing",) if FAMILY_OF[name] == "flow" else ("lambda_min_clipped",)
    for key, value in theirs.config.items():
        if not key.startswith("_") and key not in ignored:
            assert back.config[key] == value, key


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_flow_configs_of_the_dpm_solvers(name):
    theirs = getattr(diffusers, name)(use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction")
    ours = RectifiedFlowScheduler.from_config(theirs.config)
    assert ours.family.name == "flow"
    assert ours.config.shift == 5.0
    ours.set_timesteps(4)
    theirs.set_timesteps(4)
    assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=2)  # theirs are whole numbers
    back = getattr(diffusers, name).from_config(ours.config)
    assert back.config.use_flow_sigmas is True
    assert back.config.flow_shift == 5.0
    assert back.config.prediction_type == "flow_prediction"


def test_lus_uniform_log_snr_steps_are_exponential_levels():
    theirs = diffusers.DPMSolverMultistepScheduler(use_lu_lambdas=True, beta_schedule="scaled_linear")
    ours = RectifiedFlowScheduler.from_config(theirs.config)
    assert ours.config.use_exponential_sigmas is True
    theirs.set_timesteps(9)
    ours.set_timesteps(9)
    assert ours.sigmas.tolist() == pytest.approx(theirs.sigmas.tolist(), rel=1e-4)
    with pytest.raises(InputError, match="log_linear"):
        RectifiedFlowScheduler.from_config(diffusers.EulerDiscreteScheduler(interpolation_type="log_linear").config)


def test_an_override_of_one_name_of_the_shift_wins_over_the_other():
    ours = RectifiedFlowScheduler.from_config(RectifiedFlowScheduler(shift=3.0).config, flow_shift=7.0)
    assert ours.config.shift == ours.config.flow_shift == 7.0


def test_hidden_keys_of_an_earlier_class_do_not_decide():
    config = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_max": 80.0}
    ddim = diffusers.DDIMScheduler.from_config(config)  # carries both along
    assert "sigma_data" in ddim.config
    assert RectifiedFlowScheduler.from_config(ddim.config).family.name == "beta"


def test_missing_keys_mean_the_defaults_of_the_class_that_wrote_the_file():
    """Stable Diffusion 1.5's file is older than timestep_spacing; PNDM's default is leading."""
    config = {
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "trained_betas": None, "clip_sample": False,
    }  # fmt: skip
    ours = RectifiedFlowScheduler.from_config(config)
    assert ours.config.timestep_spacing == "leading"
    assert ours.prediction_type == "epsilon"
    ours.set_timesteps(50)
    assert ours.timesteps[0] == 981
    assert ours.timesteps[-1] == 1
    assert ours.config.skip_prk_steps is True  # kept for the way back


def test_unknown_keys_do_not_break():
    config = {**diffusers.DDIMScheduler().config, "something_new": 3}
    assert RectifiedFlowScheduler.from_config(config).config.something_new == 3


def test_returns_unused_keywords():
    scheduler, unused = RectifiedFlowScheduler.from_config(
        diffusers.DDIMScheduler().config, return_unused_kwargs=True, other=1
    )
    assert isinstance(scheduler, RectifiedFlowScheduler)
    assert unused["other"] == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (diffusers.VQDiffusionScheduler(num_vec_classes=10).config, "Gaussian path"),
        (diffusers.ScoreSdeVeScheduler().config, "Gaussian path"),
        (diffusers.CMStochasticIterativeScheduler().config, "consistency"),
        (diffusers.SCMScheduler().config, "Gaussian path"),
        (diffusers.DDPMWuerstchenScheduler().config, "Gaussian path"),
        (diffusers.IPNDMScheduler().config, "Gaussian path"),
        ({"_class_name": "FlowMapEulerDiscreteScheduler", "shift": 1.0}, "flow map"),
        ({"_class_name": "AmusedScheduler", "mask_token_id": 3}, "AmusedScheduler"),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config, "invert_sigmas"),
        ({"beta_schedule": "linear", "prediction_type": "angle"}, "angle"),
        (
            {"timestep_type": "continuous", "prediction_type": "v_prediction", "beta_schedule": "linear"},
            "timestep_type",
        ),
    ],
)
def test_configs_without_a_path_we_know(config, message):
    with pytest.raises(InputError, match=message):
        RectifiedFlowScheduler.from_config(config)


def test_a_misspelt_override_is_named():
    with pytest.raises(InputError, match="did you mean 'solver'"):
        RectifiedFlowScheduler.from_config({}, solvr="heun")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_short_names(name):
    """A name stands for its class with its options, on whatever config the class takes."""
    cls, options = SCHEDULERS[name]
    scheduler = create_scheduler(name, diffusers.EDMEulerScheduler().config)
    assert type(scheduler).__name__ == cls
    assert {key: scheduler.config[key] for key in options} == options
    assert scheduler.family.name == "edm"
    assert create_scheduler(name, sigma_data=1.0, sigma_max=9.0).config.sigma_max == 9.0


def test_names_of_classes():
    config = RectifiedFlowScheduler(shift=3.0).config
    theirs = create_scheduler("DPMSolverMultistepScheduler", config, solver_order=3)
    assert isinstance(theirs, diffusers.DPMSolverMultistepScheduler)
    assert (theirs.config.solver_order, theirs.config.flow_shift) == (3, 3.0)
    assert isinstance(create_scheduler("RectifiedFlowScheduler", config), RectifiedFlowScheduler)
    assert isinstance(create_scheduler("DDIMScheduler"), diffusers.DDIMScheduler)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hune", {}, "did you mean 'heun'"),
        ("UNet2DModel", {}, "not known"),
        ("PathScheduler", {}, "not known"),
        ("heun", {"shfit": 2}, "did you mean 'shift'"),
        ("DDIMScheduler", {"clip_smaple": True}, "did you mean 'clip_sample'"),
        ("DDIMScheduler", {"beta_schedule": "nope"}, "nope"),
    ],
)
def test_bad_names_and_options(name, options, message):
    with pytest.raises(InputError, match=message):
        create_scheduler(name, None, **options)
