"""diffusers' own common scheduler tests, run against every scheduler of ours. PEER.md has the outcome.

The sources are fetched, never committed: neither diffusers' wheel nor its sdist holds them. Give a checkout's folder
in GENFLOW_DIFFUSERS_SOURCE; without it this file is skipped.
"""

import importlib.util
import os
import sys
import unittest
from pathlib import Path

import diffusers
import pytest

from genflow.errors import InputError
from genflow.schedulers import SCHEDULERS, create_scheduler

SOURCE = os.environ.get("GENFLOW_DIFFUSERS_SOURCE")
if not SOURCE:
    pytest.skip(
        "needs diffusers' tests: git clone --depth 1 https://github.com/huggingface/diffusers FOLDER, "
        "then GENFLOW_DIFFUSERS_SOURCE=FOLDER",
        allow_module_level=True,
    )

FAMILIES = {
    "beta": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1100},
    "flow": {"shift": 3.0, "num_train_timesteps": 1000},
    "edm": {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0},
}
CONFIGS = {
    "beta": [
        *({"num_train_timesteps": n} for n in (100, 500, 1000)),
        *({"beta_start": low, "beta_end": high} for low, high in zip((1e-5, 1e-3), (2e-3, 2e-2), strict=True)),
        *({"beta_schedule": name} for name in ("linear", "scaled_linear", "squaredcos_cap_v2")),
        *({"prediction_type": name} for name in ("epsilon", "sample", "v_prediction", "flow_prediction")),
        *({"timestep_spacing": name} for name in ("leading", "linspace", "trailing")),
        *({key: True} for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")),
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"final_sigmas_type": "sigma_min"},
        {"steps_offset": 1, "timestep_spacing": "leading"},
    ],
    "flow": [
        *({"shift": value} for value in (0.5, 1.0, 6.0)),
        # a flow starts from pure noise, where epsilon says nothing
        *({"prediction_type": name} for name in ("sample", "v_prediction", "flow_prediction")),
        *({key: True} for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")),
        {"shift_terminal": 0.1},
        {"timestep_spacing": "linspace"},
    ],
    "edm": [
        {"sigma_schedule": "exponential"},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"sigma_data": 1.0},
        {"sigma_max": 700.0},
    ],
}


def load_common_test() -> type:
    """SchedulerCommonTest out of the checkout, under a package name that cannot meet our own folder ``tests``."""
    name, folder = "diffusers_peer_tests", Path(SOURCE) / "tests"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.schedulers.test_schedulers").SchedulerCommonTest


COMMON = load_common_test()
TESTS = unittest.TestLoader().getTestCaseNames(COMMON)


@pytest.fixture
def case(request):
    """``(name, family) -> an instance of the peer's test class`` for that scheduler on that family's config."""
    name, family = request.param
    options = {**SCHEDULERS[name][1], **FAMILIES[family]}
    try:
        cls = type(create_scheduler(name, None, **options))
    except InputError as error:
        pytest.skip(f"{name} refuses this family: {error}")

    class Case(COMMON):
        scheduler_classes = (cls,)
        forward_default_kwargs = (("num_inference_steps", 25),)

        def get_scheduler_config(self, **kwargs):
            return {**options, **kwargs}

    Case.family = family
    # the suite asks the diffusers package for compatible classes; without this its loop variable is never bound
    had = cls.__dict__.get("_compatibles")
    setattr(diffusers, cls.__name__, cls)
    cls._compatibles = [cls.__name__]
    yield Case
    delattr(diffusers, cls.__name__)
    cls._compatibles = had if had is not None else []


CASES = pytest.mark.parametrize(
    "case", [(name, family) for name in SCHEDULERS for family in FAMILIES], indirect=True, ids="-".join
)


@CASES
@pytest.mark.parametrize("test", TESTS)
def test_common(case, test):
    if test == "test_trained_betas" and case.family != "beta":
        pytest.skip(f"a {case.family} config has no betas")
    one = case(test)
    scheduler = case.scheduler_classes[0](**one.get_scheduler_config())
    if test == "test_from_pretrained" and "_use_default_values" not in scheduler.config:
        pytest.skip("the test wants a config that leaves a key at its default; this one says every key")
    one.setUp()
    getattr(one, test)()
    one.tearDown()


@CASES
def test_over_configs(case):
    """The helper that diffusers' concrete test files call for every option: saved, loaded, same step."""
    one = case("test_step_shape")
    for config in CONFIGS[case.family]:
        one.check_over_configs(time_step=first_timestep(case, config), **config)


@CASES
def test_over_forward(case):
    """The other helper: the number of steps and the timestep vary."""
    one = case("test_step_shape")
    for steps in (1, 2, 10, 50):
        one.check_over_forward(num_inference_steps=steps, time_step=first_timestep(case, {}, steps))


def first_timestep(case, config, steps=25):
    scheduler = case.scheduler_classes[0](**case("test_step_shape").get_scheduler_config(**config))
    scheduler.set_timesteps(steps)
    return scheduler.timesteps[0]
