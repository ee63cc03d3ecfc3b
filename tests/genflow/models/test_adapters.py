"""Networks of diffusers as path models: timesteps, labels, dtypes, extra channels, preconditioning."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, EDMEulerScheduler, UNet2DModel
from torch import Tensor, nn

from genflow.errors import InputError
from genflow.models import EDMNetworkModel, EDMPreconditioning, LeanUNet2DModel, from_diffusers
from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath

TABLE = VPPath.from_alphas_cumprod(DDIMScheduler().alphas_cumprod)


class Recorder(nn.Module):
    """A network that returns its input and remembers how it was called."""

    def __init__(self, dtype: torch.dtype = torch.float32, channels: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.channels = channels
        self.calls: list[dict[str, Any]] = []

    def forward(self, x: Tensor, timestep: Tensor, **kwargs: Any) -> tuple[Tensor]:
        self.calls.append({"x": x, "timestep": timestep, **kwargs})
        return (torch.cat([x * self.weight] * self.channels, dim=1),)


def unet(**options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **options,
    ).eval()


def dit(**options: Any) -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        **options,
    ).eval()


@pytest.mark.parametrize(
    ("path", "t", "expected"),
    [
        (LinearPath(), 0.25, 250.0),
        (LinearPath(3.0), 0.25, 500.0),  # 1000 sigma: shift moves the time, not what the network is told of a level
        (TABLE, 0.25, 249.0),
        (TABLE, 1.0, 999.0),
        (TABLE, 0.0, 0.0),
        (VPPath.linear(), 0.25, 250.0),
        (TrigonometricPath(), 0.25, 250.0),
    ],
)
def test_timesteps(path: Path, t: float, expected: float) -> None:
    network = Recorder()
    model = from_diffusers(network, path, "epsilon")
    x = torch.randn(3, 1, 2, 2)
    model.predict(x, t)
    model.predict(x, torch.full((3,), t))
    model.predict(x, torch.tensor(t))
    for call in network.calls:
        assert call["timestep"].dtype == torch.float32
        assert call["timestep"].tolist() == pytest.approx([expected] * 3, rel=1e-6)
        assert "class_labels" not in call


def test_other_train_lengths() -> None:
    network = Recorder()
    from_diffusers(network, LinearPath(), "flow_prediction", num_train_timesteps=1).predict(torch.ones(2, 1), 0.25)
    assert network.calls[0]["timestep"].tolist() == [0.25, 0.25]
    with pytest.raises(InputError, match="num_train_timesteps"):
        from_diffusers(network, LinearPath(), "flow_prediction", num_train_timesteps=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_network_is_called_in_its_own_dtype(dtype: torch.dtype) -> None:
    network = Recorder(dtype)
    prediction = from_diffusers(network, LinearPath(), "flow_prediction").predict(torch.randn(2, 1, 4), 0.5)
    assert network.calls[0]["x"].dtype == dtype
    assert prediction.x0.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_learned_variance_channels_are_dropped() -> None:
    x = torch.randn(2, 3, 4, 4)
    prediction = from_diffusers(Recorder(channels=2), LinearPath(), "flow_prediction").predict(x, 0.5)
    assert torch.equal(prediction.flow_prediction, x)
    with pytest.raises(InputError, match="does not fit x"):
        from_diffusers(Recorder(channels=3), LinearPath(), "flow_prediction").predict(x, 0.5)


def test_labels() -> None:
    network = Recorder()
    model = from_diffusers(network, LinearPath(), "flow_prediction", num_classes=10)
    x = torch.randn(3, 1, 2, 2)
    model.predict(x, 0.5, class_labels=[0, 9, 10])
    assert network.calls[-1]["class_labels"].dtype == torch.int64
    assert network.calls[-1]["class_labels"].tolist() == [0, 9, 10]
    model.predict(x, 0.5)  # no labels: the null label
    assert network.calls[-1]["class_labels"].tolist() == [10, 10, 10]
    model.predict(x, 0.5, encoder_hidden_states="prompt")
    assert network.calls[-1]["encoder_hidden_states"] == "prompt"
    for labels in ([0, 1, 11], [-1, 0, 0]):
        with pytest.raises(InputError, match=r"class_labels: got .* allowed: 0 to 10"):
            model.predict(x, 0.5, class_labels=labels)
    with pytest.raises(InputError, match=r"class_labels: shape \(2,\); allowed: \(3,\)"):
        model.predict(x, 0.5, class_labels=[1, 2])


def test_unet2d() -> None:
    network = unet(num_class_embeds=11)
    model = from_diffusers(network, LinearPath(), "flow_prediction", num_classes=10)
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 10])
    with torch.no_grad():
        prediction = model.predict(x, 0.3, class_labels=labels)
        expected = network(x, 300, class_labels=labels).sample
    torch.testing.assert_close(prediction.flow_prediction, expected)
    torch.testing.assert_close(prediction.x0, x - 0.3 * expected)
    assert from_diffusers(network, LinearPath(), "flow_prediction").null_label is None  # it does not tell


def test_unet2d_unconditional_on_a_table() -> None:
    network = unet()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        prediction = from_diffusers(network, TABLE, "epsilon").predict(x, 0.5)
        expected = network(x, 499).sample
    torch.testing.assert_close(prediction.epsilon, expected)


@pytest.mark.parametrize("out_channels", [2, 4])
def test_dit(out_channels: int) -> None:
    network = dit(out_channels=out_channels)
    model = from_diffusers(network, VPPath.from_alphas_cumprod(DDIMScheduler().alphas_cumprod), "epsilon")
    assert (model.num_classes, model.null_label) == (10, 10)
    x, labels = torch.randn(3, 2, 8, 8), torch.tensor([0, 5, 10])
    with torch.no_grad():
        prediction = model.predict(x, 0.5, class_labels=labels)
        expected = network(x, torch.full((3,), 499), class_labels=labels).sample[:, :2]
        unconditional = model.predict(x, 0.5)
    torch.testing.assert_close(prediction.epsilon, expected)
    torch.testing.assert_close(unconditional.epsilon[2], expected[2])  # same null label


def test_lean_unet() -> None:
    torch.manual_seed(0)
    network = LeanUNet2DModel(sample_size=8, block_out_channels=(16, 32), attention_head_dim=16, num_classes=5).eval()
    model = from_diffusers(network, LinearPath(), "flow_prediction")
    assert model.null_label == 5
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 4])
    with torch.no_grad():
        expected = network(x, torch.full((2,), 700.0), class_labels=labels).sample
        torch.testing.assert_close(model.predict(x, 0.7, class_labels=labels).velocity, expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_edm_preconditioning_around_a_network(prediction_type: str) -> None:
    network = unet()
    path = EDMPath(80.0)
    model = from_diffusers(network, path, prediction_type, sigma_data=0.4)
    assert isinstance(model, EDMNetworkModel)
    scheduler = EDMEulerScheduler(sigma_data=0.4, prediction_type=prediction_type)
    x = torch.randn(2, 1, 8, 8) * 3
    sigma = torch.tensor(3.0)
    with torch.no_grad():
        noise = scheduler.precondition_noise(sigma)
        output = network(scheduler.precondition_inputs(x, sigma), noise).sample
        expected = scheduler.precondition_outputs(x, output, sigma)
        torch.testing.assert_close(model.predict(x, 3 / 80).x0, expected)
        per_sample = model.predict(x, torch.tensor([3 / 80, 3 / 80])).x0
    torch.testing.assert_close(per_sample, expected)


def test_edm_with_the_network_as_denoiser_and_what_is_refused() -> None:
    network = Recorder()
    model = from_diffusers(network, EDMPath(80.0), "sample")
    x = torch.randn(2, 1, 2, 2)
    expected = EDMPreconditioning(0.5).c_in(8.0) * x
    torch.testing.assert_close(model.predict(x, 0.1).x0, expected)
    with pytest.raises(InputError, match="flow_prediction"):
        from_diffusers(network, EDMPath(80.0), "flow_prediction")
    with pytest.raises(InputError, match="EDMPath"):
        EDMNetworkModel(network, LinearPath())
    with pytest.raises(InputError, match="did you mean 'epsilon'"):
        from_diffusers(network, LinearPath(), "epsilom")
    with pytest.raises(InputError, match="prediction_type"):
        from_diffusers(network, LinearPath(), "score")
