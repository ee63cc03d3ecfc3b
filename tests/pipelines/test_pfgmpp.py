"""ImagePipeline on a PFGM++ network: its prior, one image's seed, what is saved."""

import json

import pytest
import torch
from diffusers import EDMEulerScheduler

from genflow.models import LeanUNet2DModel, from_diffusers
from genflow.paths import PFGMPlusPlusPath
from genflow.pipelines import ImagePipeline
from genflow.sampling import randn, sample, time_grid
from genflow.schedulers import HBScheduler, PFGMPlusPlusScheduler, RectifiedFlowScheduler


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = LeanUNet2DModel(
        sample_size=8, in_channels=1, block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=16,
        time_embed_dim=32,
    )  # fmt: skip
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def pipeline(network, scheduler):
    pipe = ImagePipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe, seeds, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": 4, "generator": generators, "output_type": "latent", **options}
    return pipe(**options).images


def test_it_starts_from_the_papers_prior(network):
    """The same images as the plain loop from ``sigma_max * z * sqrt(D / chi2)``, the two drawn in this order."""
    path, seeds = PFGMPlusPlusPath(3.0), (5, 6, 7)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    normal = randn((1, 8, 8), generators)
    start = path.noise(normal, generators)
    factors = start.flatten(1)[:, 0] / normal.flatten(1)[:, 0]
    assert factors.unique().numel() == 3
    model = from_diffusers(network, path, "epsilon")
    expected = sample(model, 80 * start, time_grid(path, 4, "karras"), "heun")
    images = call(pipeline(network, PFGMPlusPlusScheduler(D=3)), seeds)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)


def test_an_image_depends_on_its_own_seed(network):
    pipe = pipeline(network, PFGMPlusPlusScheduler(D=2.5))
    together = call(pipe, (1, 2, 3))
    torch.testing.assert_close(call(pipe, (2,)), together[1:2], rtol=1e-3, atol=1e-3)
    assert torch.equal(call(pipe, (1, 2, 3)), together)
    # given normal noise goes the same way; the generator then has only the factor to give
    latents = torch.randn(2, 1, 8, 8)
    assert torch.equal(call(pipe, (1, 2), latents=latents), call(pipe, (1, 2), latents=latents))
    assert not torch.equal(call(pipe, (1, 2), latents=latents), call(pipe, (3, 4), latents=latents))


def test_without_augmentation_it_is_the_edm_pipeline(network):
    mine = call(pipeline(network, PFGMPlusPlusScheduler(D="inf")), (1, 2))
    theirs = RectifiedFlowScheduler.from_config(EDMEulerScheduler().config, solver="heun")
    assert torch.equal(mine, call(pipeline(network, theirs), (1, 2)))
    assert not torch.equal(mine, call(pipeline(network, PFGMPlusPlusScheduler(D=128)), (1, 2)))


@pytest.mark.parametrize("D", [64, "inf"])
def test_save_and_load(network, tmp_path, D):  # noqa: N803
    pipe = pipeline(network, PFGMPlusPlusScheduler(D=D))
    pipe.save_pretrained(tmp_path)
    json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text(), parse_constant=pytest.fail)
    again = ImagePipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, PFGMPlusPlusScheduler)
    assert torch.equal(call(again, (1,)), call(pipe, (1,)))


def test_another_scheduler_keeps_the_networks_noise(network):
    """What a network was trained with stays in its config: HB momentum on it starts from the same prior."""
    pipe = pipeline(network, PFGMPlusPlusScheduler(D=64))
    pipe.scheduler = HBScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.path == PFGMPlusPlusPath(64)
    starts = []
    hook = network.register_forward_pre_hook(lambda _, inputs: starts.append(inputs[0]))
    call(pipe, (1,))
    call(pipeline(network, PFGMPlusPlusScheduler(D=64)), (1,))
    hook.remove()
    assert torch.equal(starts[0], starts[4])
