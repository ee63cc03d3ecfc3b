"""ImagePipeline with real, tiny networks."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DiTTransformer2DModel, UNet2DModel
from PIL import Image

from genflow.errors import InputError, NonFiniteError
from genflow.guidance import APG, CFG, AutoGuidance
from genflow.models import LeanUNet2DModel, from_diffusers
from genflow.paths import LinearPath
from genflow.pipelines import ImagePipeline
from genflow.sampling import sample
from genflow.schedulers import RectifiedFlowScheduler

NAMES = ["t-shirt", "trouser", "pullover"]


def lean(**options):
    torch.manual_seed(0)
    network = LeanUNet2DModel(
        sample_size=8, in_channels=1, block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=16,
        num_classes=3, time_embed_dim=32, **options,
    )  # fmt: skip
    for parameter in network.parameters():
        if not parameter.any():  # every branch starts at zero
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def unet(**options):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **options,
    ).eval()  # fmt: skip


def dit(classes=3):
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=4,
        patch_size=2, num_embeds_ada_norm=classes,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(network.proj_out_2.weight, std=0.2)
    return network


def vae(**options):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, sample_size=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, **options,
    ).eval()  # fmt: skip


def pipeline(network=None, scheduler=None, **options):
    pipe = ImagePipeline(network or lean(), scheduler or RectifiedFlowScheduler(), **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


FLOW_SCHEDULERS = [
    diffusers.FlowMatchEulerDiscreteScheduler(),
    diffusers.FlowMatchHeunDiscreteScheduler(),
    diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    RectifiedFlowScheduler(solver="heun", shift=2.0),
]
BETA_SCHEDULERS = [
    diffusers.DDIMScheduler(clip_sample=False),
    diffusers.DDPMScheduler(),
    diffusers.EulerDiscreteScheduler(),
    diffusers.EulerAncestralDiscreteScheduler(),
    diffusers.HeunDiscreteScheduler(),
    diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, prediction_type="v_prediction"),
    diffusers.EDMEulerScheduler(),
    RectifiedFlowScheduler(beta_schedule="linear", prediction_type="sample"),
    RectifiedFlowScheduler(sigma_data=0.5, sigma_max=80.0, solver="heun"),
]


@pytest.mark.parametrize("scheduler", FLOW_SCHEDULERS + BETA_SCHEDULERS, ids=lambda s: type(s).__name__)
def test_any_scheduler_and_images_that_depend_on_their_own_seed(scheduler):
    pipe = pipeline(scheduler=scheduler)
    arguments = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt"}
    together = pipe(class_labels=[0, 1, 2], generator=seeds(3, 4, 5), **arguments).images
    alone = pipe(class_labels=[1], generator=seeds(4), **arguments).images
    assert together.shape == (3, 1, 8, 8)
    assert together.min() >= 0
    assert together.max() <= 1
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_the_same_images_as_diffusers_own_pipeline():
    """DDIMPipeline on an unconditional UNet2DModel."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    theirs = diffusers.DDIMPipeline(unet(), scheduler)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(batch_size=2, generator=seeds(0, 1), num_inference_steps=5, output_type="np").images
    for ours in (scheduler, RectifiedFlowScheduler.from_config(scheduler.config)):
        images = pipeline(unet(), ours)(generator=seeds(0, 1), num_inference_steps=5, output_type="np").images
        np.testing.assert_allclose(images, expected, atol=2e-4)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_same_images_as_dit_pipeline(scale):
    network, decoder = dit(classes=1000), vae()  # DiTPipeline's null class is ImageNet's 1000
    theirs = diffusers.DiTPipeline(network, decoder, diffusers.DDIMScheduler(clip_sample=False))
    theirs.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 5, "guidance_scale": scale, "output_type": "np"}
    expected = theirs([0, 2], generator=seeds(0, 1), **arguments).images
    for scheduler in (theirs.scheduler, RectifiedFlowScheduler.from_config(theirs.scheduler.config)):
        images = pipeline(network, scheduler, vae=decoder)([0, 2], generator=seeds(0, 1), **arguments).images
        assert images.shape == (2, 8, 8, 3)
        np.testing.assert_allclose(images, expected, atol=5e-4)


def test_guidance_by_scale_by_name_and_by_object_agree():
    pipe = pipeline(class_names=NAMES)
    arguments = {"class_labels": ["trouser", 2], "num_inference_steps": 3, "output_type": "pt"}
    results = [
        pipe(generator=seeds(0, 1), **arguments, **guidance).images
        for guidance in (
            {"guidance_scale": 3.0},
            {"guidance_scale": [3.0, 3.0]},
            {"guidance_scale": 3.0, "guidance": "cfg"},
            {"guidance": CFG(3.0)},
        )
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])
    plain = pipe(generator=seeds(0, 1), **arguments, guidance_scale=1.0).images
    assert (plain - results[0]).abs().max() > 1e-3
    mixed = pipe(generator=seeds(0, 1), **arguments, guidance_scale=[1.0, 3.0]).images
    torch.testing.assert_close(mixed, torch.stack([plain[0], results[0][1]]), rtol=1e-4, atol=1e-4)


def test_apg_by_name_and_by_object_agree():
    pipe = pipeline(class_names=NAMES, scheduler=RectifiedFlowScheduler(solver="heun"))
    arguments = {"class_labels": ["trouser", 2], "num_inference_steps": 4, "output_type": "pt"}
    options = {"eta": 0.3, "norm_threshold": 0.5, "start": 0.25}
    by_name = pipe(generator=seeds(0, 1), guidance="apg", guidance_scale=4, guidance_options=options, **arguments)
    rule = APG(4.0, **options)
    for _ in range(2):  # the second run forgets the first
        by_object = pipe(generator=seeds(0, 1), guidance=rule, **arguments)
        assert torch.equal(by_name.images, by_object.images)
    assert rule.steps == 4
    cfg = pipe(generator=seeds(0, 1), guidance_scale=4, **arguments)
    assert (cfg.images - by_name.images).abs().max() > 1e-2
    still = APG(4.0, eta=1.0, norm_threshold=None, momentum=0.0)
    same = pipe(generator=seeds(0, 1), guidance=still, **arguments)
    torch.testing.assert_close(same.images, cfg.images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "calls"),
    [
        (RectifiedFlowScheduler(), [2, 2, 4, 4]),
        (RectifiedFlowScheduler(solver="heun"), [2, 2, 2, 2, 4, 4, 4]),
        (diffusers.FlowMatchEulerDiscreteScheduler(), [2, 2, 4, 4]),
        (diffusers.FlowMatchHeunDiscreteScheduler(), [2, 2, 2, 2, 4, 4, 4]),
        (diffusers.PNDMScheduler(skip_prk_steps=True), [2, 2, 2, 4, 4]),
        (diffusers.PNDMScheduler(), [2] * 8 + [4] * 5),  # three steps of four evaluations, and one more
    ],
    ids=["euler", "heun", "diffusers-euler", "diffusers-heun", "plms", "prk"],
)
def test_guidance_in_a_part_of_the_steps(scheduler, calls):
    pipe = pipeline(class_names=NAMES, scheduler=scheduler)
    seen = []
    pipe.unet.register_forward_pre_hook(lambda network, args: seen.append(len(args[0])))
    pipe([0, 1], num_inference_steps=4, guidance_scale=2.0, guidance_options={"start": 0.5})
    assert seen == calls


def test_autoguidance_with_a_plain_network():
    pipe = pipeline(class_names=NAMES)
    torch.manual_seed(1)
    weak = lean()
    for parameter in weak.parameters():
        parameter.data.mul_(0.9)
    arguments = {"class_labels": [0, 1], "num_inference_steps": 3, "output_type": "pt"}
    ours = pipe(generator=seeds(0, 1), guidance=AutoGuidance(weak, CFG(2.0)), **arguments).images
    noise = torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in seeds(0, 1)])
    strong, weaker = (from_diffusers(network, LinearPath(), "flow_prediction") for network in (pipe.unet, weak))
    times = [*pipe.scheduler.times, 0.0]
    expected = sample(strong, noise, times, "euler", AutoGuidance(weaker, CFG(2.0)), class_labels=torch.tensor([0, 1]))
    torch.testing.assert_close(ours, expected.clamp(-1, 1) / 2 + 0.5)
    plain = pipeline(unet(), diffusers.DDIMScheduler())  # no labels are needed
    guided = plain(num_inference_steps=2, guidance=AutoGuidance(unet(), APG(3.0)), generator=seeds(0), output_type="pt")
    same = plain(num_inference_steps=2, generator=seeds(0), output_type="pt")
    torch.testing.assert_close(guided.images, same.images, rtol=1e-4, atol=1e-4)  # no weaker than the network itself
    with pytest.raises(InputError, match="weak: its parameters are on"):
        pipe([0], guidance=AutoGuidance(torch.nn.Linear(2, 2, device="meta"), CFG(2.0)))


def test_guidance_interval_by_default():
    outside = pipeline(default_guidance_scale=5.0, default_guidance_interval=[0.0, 1e-6])
    plain = pipeline()
    arguments = {"class_labels": 1, "num_inference_steps": 3, "output_type": "pt"}
    torch.testing.assert_close(
        outside(generator=seeds(0), **arguments).images, plain(generator=seeds(0), **arguments).images
    )


def test_labels_sizes_and_generators():
    pipe = pipeline(class_names=NAMES, default_steps=2, default_guidance_scale=2.0)
    assert len(pipe().images) == 1  # of the null class, without guidance
    assert len(pipe(class_labels=2, batch_size=3).images) == 3
    assert len(pipe(class_labels=torch.tensor([0, 1])).images) == 2
    assert len(pipe(generator=seeds(1, 2)).images) == 2
    one = pipe(class_labels=[0, 1], generator=seeds(0)[0], output_type="pt").images
    again = pipe(class_labels=[0, 1], generator=seeds(0)[0], output_type="pt").images
    assert torch.equal(one, again)
    start = torch.randn(2, 1, 8, 8, generator=seeds(0)[0])
    split = torch.stack([torch.randn(1, 8, 8, generator=g) for g in [seeds(0)[0]]])
    torch.testing.assert_close(
        pipe(class_labels=[0], latents=split, output_type="pt").images,
        pipe(class_labels=[0], generator=seeds(0), output_type="pt").images,
    )
    assert len(pipe(latents=start).images) == 2
    assert pipe(height=16, width=12).images[0].size == (12, 16)


def test_output_types():
    pipe = pipeline(network=dit(), scheduler=RectifiedFlowScheduler(beta_schedule="linear"), vae=vae(shift_factor=0.1))
    arguments = {"class_labels": [1], "num_inference_steps": 2, "generator": seeds(0)}
    latent = pipe(**arguments | {"generator": seeds(0)}, output_type="latent").images
    assert latent.shape == (1, 4, 4, 4)
    pt = pipe(**arguments | {"generator": seeds(0)}, output_type="pt").images
    decoded = pipe.vae.decode(latent / pipe.vae.config.scaling_factor + 0.1).sample
    torch.testing.assert_close(pt, (decoded.clamp(-1, 1) / 2 + 0.5))
    array = pipe(**arguments | {"generator": seeds(0)}, output_type="np", return_dict=False)[0]
    np.testing.assert_allclose(array, pt.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    picture = pipe(**arguments | {"generator": seeds(0)}).images[0]
    assert isinstance(picture, Image.Image)
    assert picture.mode == "RGB"
    assert pipeline()(num_inference_steps=2).images[0].mode == "L"


def test_custom_timesteps_and_dynamic_shift():
    pipe = pipeline(scheduler=RectifiedFlowScheduler(use_dynamic_shifting=True))
    assert len(pipe(num_inference_steps=2, mu=0.5).images) == 1
    with pytest.raises(InputError, match="mu"):
        pipe(num_inference_steps=2)
    pipe = pipeline()
    a = pipe(sigmas=[1.0, 0.4], generator=seeds(0), output_type="pt").images
    b = pipe(timesteps=[1000.0, 400.0], generator=seeds(0), output_type="pt").images
    torch.testing.assert_close(a, b)
    pipe = pipeline(scheduler=diffusers.DDIMScheduler())
    with pytest.raises(InputError, match="sigmas"):
        pipe(sigmas=[1.0, 0.4])


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_callback_and_progress_bar(solver, capsys):
    pipe = pipeline(scheduler=RectifiedFlowScheduler(solver=solver))
    pipe.set_progress_bar_config(disable=False)
    seen = []

    def callback(given, i, t, tensors):
        assert given is pipe
        seen.append((i, float(t)))
        return {"latents": tensors["latents"] * 0}

    image = pipe(num_inference_steps=3, callback_on_step_end=callback, output_type="pt").images
    assert torch.equal(image, torch.full_like(image, 0.5))
    assert seen == list(enumerate(pipe.scheduler.timesteps.tolist()))
    assert "3/3" in capsys.readouterr().err


def test_half_precision_network():
    pipe = pipeline().to(torch.bfloat16)
    image = pipe(class_labels=[1], num_inference_steps=3, output_type="pt").images
    assert image.dtype == torch.float32
    assert torch.isfinite(image).all()


@pytest.mark.parametrize(
    "scheduler", [RectifiedFlowScheduler(solver="heun"), diffusers.FlowMatchEulerDiscreteScheduler()]
)
def test_nan_from_the_network_names_the_step(scheduler):
    pipe = pipeline(scheduler=scheduler)
    calls = []

    def broken(module, arguments, output):
        calls.append(1)
        if len(calls) == 4:
            output.sample[0, 0, 0, 0] = float("nan")

    pipe.unet.register_forward_hook(broken)
    step = 2 if isinstance(scheduler, RectifiedFlowScheduler) else 4
    with pytest.raises(NonFiniteError, match=f"step {step} of 5"):
        pipe(class_labels=[0, 1], num_inference_steps=5)
    assert len(calls) == 4


BAD_CALLS = [
    ({"class_labels": ["trousers"]}, "did you mean 'trouser'"),
    ({"class_labels": [4]}, "class_labels"),
    ({"class_labels": [-1]}, "class_labels"),
    ({"class_labels": [0.5]}, "class_labels"),
    ({"class_labels": []}, "class_labels 0"),
    ({"class_labels": [0, 1], "batch_size": 3}, "different numbers"),
    ({"class_labels": [0, 1], "generator": seeds(1)}, "different numbers"),
    ({"batch_size": 0}, "batch_size"),
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_inference_steps": 2.5}, "num_inference_steps"),
    ({"guidance_scale": float("nan"), "class_labels": 1}, "scale"),
    ({"guidance_scale": 2.0}, "needs class_labels"),
    ({"guidance_scale": 2.0, "guidance": CFG(2.0), "class_labels": 1}, "guidance_scale"),
    ({"guidance_scale": [2.0, 3.0], "class_labels": 1}, "guidance_scale"),
    ({"guidance": "cgf", "class_labels": 1}, "did you mean 'cfg'"),
    ({"guidance_options": {"etta": 1}, "guidance": "apg", "class_labels": 1}, "did you mean 'eta'"),
    ({"guidance_options": {"scale": 1}, "guidance": "apg", "class_labels": 1}, "'scale'"),
    ({"guidance_options": {"rescale": 1}, "guidance": CFG(2.0), "class_labels": 1}, "guidance_options"),
    ({"guidance": CFG([2.0, 3.0]), "class_labels": 1}, "2 scales"),
    ({"output_type": "jpeg"}, "output_type"),
    ({"latents": torch.zeros(1, 3, 8, 8)}, "latents"),
    ({"height": 0}, "height"),
    ({"sigmas": [0.5, 0.7]}, "sigmas"),
    ({"callback_on_step_end_tensor_inputs": ["prompt"]}, "prompt"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_calls(arguments, message):
    pipe = pipeline(class_names=NAMES)
    calls = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match=message):
        pipe(**arguments)
    assert not calls


def test_networks_with_and_without_classes():
    with pytest.raises(InputError, match="unconditional"):
        pipeline(unet())(class_labels=[0])
    assert len(pipeline(unet())(num_inference_steps=2).images) == 1
    labelled = pipeline(unet(num_class_embeds=3))
    with pytest.raises(InputError, match="no null class"):
        labelled()
    with pytest.raises(InputError, match="class_labels"):
        labelled(class_labels=[3])
    with pytest.raises(InputError, match="with a null class"):
        labelled(class_labels=[1], guidance_scale=2.0)
    assert len(labelled(class_labels=[2], num_inference_steps=2).images) == 1
    # one embedding more than there are names: the last is the null class
    named = pipeline(unet(num_class_embeds=4), class_names=NAMES)
    assert named.null_label == 3
    assert len(named(class_labels=["pullover"], guidance_scale=2.0, num_inference_steps=2).images) == 1
    told = pipeline(unet(num_class_embeds=4), null_label=3)
    assert len(told(num_inference_steps=2).images) == 1


def test_a_scheduler_without_a_path_is_refused():
    with pytest.raises(InputError, match="consistency"):
        pipeline(scheduler=diffusers.CMStochasticIterativeScheduler())(num_inference_steps=2)


def test_swapping_schedulers():
    pipe = pipeline()
    for name in ("FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        assert len(pipe(class_labels=[1], num_inference_steps=3).images) == 1
    pipe.scheduler = RectifiedFlowScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.family.name == "flow"


def test_from_another_pipeline():
    theirs = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    ours = ImagePipeline.from_pipe(theirs, default_steps=2)
    ours.set_progress_bar_config(disable=True)
    assert ours.unet is theirs.unet
    assert len(ours(batch_size=2).images) == 2
    assert ImagePipeline.from_pipe(ours).config.default_steps == 2


def test_diffusers_own_loader_gives_the_same_images(tmp_path, monkeypatch):
    """DiffusionPipeline.from_pretrained(folder, custom_pipeline=path of pipelines/image.py)."""
    import diffusers.utils.dynamic_modules_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = pipeline(class_names=NAMES, default_steps=3)
    pipe.save_pretrained(tmp_path / "model")
    import genflow.pipelines.image as module

    loaded = DiffusionPipeline.from_pretrained(
        tmp_path / "model", custom_pipeline=module.__file__, trust_remote_code=True
    )
    assert type(loaded).__name__ == "ImagePipeline"
    assert loaded.config.class_names == NAMES
    arguments = {"class_labels": ["trouser"], "output_type": "pt"}
    assert torch.equal(loaded(generator=seeds(0), **arguments).images, pipe(generator=seeds(0), **arguments).images)
