"""The model interfaces and the adapters between them."""

import pytest
import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.models import ScoreModel, VelocityModel, as_score_model, as_velocity_model, from_function, on_path
from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath, expand_like

PATHS = [LinearPath(), LinearPath(3.0), VPPath.linear(), VPPath.cosine(), EDMPath(5.0), TrigonometricPath()]


class Gaussian(ScoreModel):
    """The exact score of standard normal data."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def score(self, x: Tensor, t: float | Tensor, **_: object) -> Tensor:
        return -x / expand_like(self.path.alpha(t) ** 2 + self.path.sigma(t) ** 2, x)


class Shrinking(VelocityModel):
    num_classes = 4

    def __init__(self, path: Path) -> None:
        self.path = path

    def velocity(self, x: Tensor, t: float | Tensor, **_: object) -> Tensor:
        return -x


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_score_and_velocity_of_a_gaussian(path: Path) -> None:
    """For normal data the ODE's velocity is x times the log-derivative of the marginal's std."""
    model = as_velocity_model(Gaussian(path))
    x = torch.randn(5, 2, dtype=torch.float64)
    for t in (0.1, 0.5, 0.9):
        variance = path.alpha(t) ** 2 + path.sigma(t) ** 2
        rate = (path.alpha(t) * path.alpha_dot(t) + path.sigma(t) * path.sigma_dot(t)) / variance
        torch.testing.assert_close(model.velocity(x, t), rate * x, rtol=1e-9, atol=1e-9)
        assert torch.equal(as_score_model(model).score(x, t), Gaussian(path).score(x, t))


def test_adapters_do_not_wrap_what_already_fits() -> None:
    score, velocity = Gaussian(LinearPath()), Shrinking(LinearPath())
    assert as_score_model(score) is score
    assert as_velocity_model(velocity) is velocity
    adapted = as_score_model(velocity)
    assert isinstance(adapted, ScoreModel)
    assert (adapted.num_classes, adapted.null_label, adapted.path) == (4, 4, LinearPath())
    x = torch.randn(2, 3)
    assert torch.equal(adapted.predict(x, 0.5).velocity, -x)  # passed through, not converted twice


def test_models_without_classes_have_no_null_label() -> None:
    assert Gaussian(LinearPath()).null_label is None


@pytest.mark.parametrize("inner", PATHS, ids=repr)
@pytest.mark.parametrize("outer", PATHS, ids=repr)
def test_a_model_on_another_path_predicts_the_same_data(inner: Path, outer: Path) -> None:
    """At equal noise levels both paths see the same problem, so x0 and the noise must agree."""
    model = on_path(Gaussian(inner), outer)
    assert model.path == outer
    x = torch.randn(4, 3, dtype=torch.float64)
    for t in (0.2, 0.6, torch.tensor([0.1, 0.2, 0.3, 0.6], dtype=torch.float64)):
        level = outer.noise_level(t)
        if float(torch.as_tensor(level).max()) < inner.noise_level(1.0):
            prediction = model.predict(x, t)
            expected = Gaussian(outer).predict(x, t)
            torch.testing.assert_close(prediction.x0, expected.x0, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(prediction.epsilon, expected.epsilon, rtol=1e-9, atol=1e-9)


def test_on_path_above_the_models_own_levels_asks_at_its_highest() -> None:
    times = []

    def network(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return x

    model = on_path(from_function(network, EDMPath(5.0), "epsilon"), LinearPath())
    x = torch.randn(2, 3)
    prediction = model.predict(x, 1.0)
    assert times == [1.0]
    # alpha + sigma is 6 there and 1 here, so the network saw 6 x
    torch.testing.assert_close(prediction.flow_prediction, 6 * x - (6 * x - 5 * 6 * x))
    model = on_path(from_function(network, VPPath.linear(), "epsilon"), LinearPath())
    model.predict(x, torch.tensor([0.5, 1.0]))
    assert times[-1].max() == 1
    assert on_path(model, LinearPath()) is model


def test_function_models_check_their_kind() -> None:
    with pytest.raises(InputError, match="did you mean 'sample'"):
        from_function(lambda x, t: x, LinearPath(), "sampel")
    model = from_function(lambda x, t, factor: factor * x, LinearPath(), "sample", num_classes=3)
    assert model.null_label == 3
    assert torch.equal(model.predict(torch.ones(2), 0.5, factor=2).x0, torch.full((2,), 2.0))
