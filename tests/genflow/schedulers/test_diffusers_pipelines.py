"""Real diffusers pipelines with tiny random networks, our scheduler in the place of theirs."""

import inspect

import diffusers
import pytest
import torch

from genflow.schedulers import RectifiedFlowScheduler

STEPS = 4


def conditional_unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=8, attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=2,
    ).eval()  # fmt: skip


def vae():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, shift_factor=0.1,
    ).eval()  # fmt: skip


def stable_diffusion(cls, scheduler):
    return cls(
        vae=vae(), unet=conditional_unet(), scheduler=scheduler, text_encoder=None, tokenizer=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def run(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    result = pipe(
        num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0), output_type="latent", **arguments
    )
    assert torch.isfinite(result.images.float()).all()
    return result.images


def prompts(dim=8, tokens=5, **kwargs):
    generator = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(1, tokens, dim, generator=generator),
        "negative_prompt_embeds": torch.randn(1, tokens, dim, generator=generator),
        **kwargs,
    }


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_stable_diffusion(prediction_type):
    theirs = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip
    pipe = stable_diffusion(diffusers.StableDiffusionPipeline, theirs)
    expected = run(pipe, **prompts())
    pipe.scheduler = RectifiedFlowScheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(run(pipe, **prompts()), expected, rtol=1e-3, atol=1e-3)
    pipe.scheduler = RectifiedFlowScheduler.from_config(pipe.scheduler.config, solver="heun")
    run(pipe, **prompts())


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_stable_diffusion_image_to_image(strength):
    theirs = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing")
    pipe = stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline, theirs)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = run(pipe, image=image, strength=strength, **prompts())
    pipe.scheduler = RectifiedFlowScheduler.from_config(theirs.config)
    torch.testing.assert_close(run(pipe, image=image, strength=strength, **prompts()), expected, rtol=1e-3, atol=1e-3)
    pipe.scheduler = RectifiedFlowScheduler.from_config(theirs.config, solver="heun")
    run(pipe, image=image, strength=strength, **prompts())


def test_stable_diffusion_inpainting():
    theirs = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing")
    pipe = stable_diffusion(diffusers.StableDiffusionInpaintPipeline, theirs)
    arguments = {
        "image": torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2)),
        "mask_image": (torch.arange(16) < 8).float().expand(1, 1, 16, 16),
        "height": 16, "width": 16, **prompts(),
    }  # fmt: skip
    expected = run(pipe, **arguments)
    pipe.scheduler = RectifiedFlowScheduler.from_config(theirs.config)
    torch.testing.assert_close(run(pipe, **arguments), expected, rtol=1e-3, atol=1e-3)


def sd3(cls):
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
    ).eval()  # fmt: skip
    return cls(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), vae=vae(),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None,
        tokenizer_3=None,
    )  # fmt: skip


def pooled(dim=8):
    return {"pooled_prompt_embeds": torch.ones(1, dim), "negative_pooled_prompt_embeds": torch.zeros(1, dim)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stable_diffusion_3(dtype):
    pipe = sd3(diffusers.StableDiffusion3Pipeline).to(dtype)
    arguments = {key: value.to(dtype) for key, value in {**prompts(), **pooled()}.items()}
    arguments |= {"height": 16, "width": 16}
    expected = run(pipe, **arguments)
    pipe.scheduler = RectifiedFlowScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    got = run(pipe, **arguments)
    assert got.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    pipe.scheduler = RectifiedFlowScheduler.from_config(pipe.scheduler.config, solver="heun")
    run(pipe, **arguments)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_stable_diffusion_3_image_to_image(solver):
    pipe = sd3(diffusers.StableDiffusion3Img2ImgPipeline)
    arguments = {**prompts(), **pooled(), "height": 16, "width": 16, "strength": 0.5}
    arguments["image"] = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = run(pipe, **arguments)
    pipe.scheduler = RectifiedFlowScheduler.from_config(
        pipe.scheduler.config, solver=solver, timestep_spacing="linspace"
    )
    got = run(pipe, **arguments)
    if solver == "euler":
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_flux_passes_sigmas_and_mu():
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    ).eval()  # fmt: skip
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    arguments = {"prompt_embeds": prompts()["prompt_embeds"], "height": 16, "width": 16}
    arguments["pooled_prompt_embeds"] = pooled()["pooled_prompt_embeds"]
    expected = run(pipe, **arguments)
    pipe.scheduler = RectifiedFlowScheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(run(pipe, **arguments), expected, rtol=1e-4, atol=1e-4)


def test_dit_with_both_solvers():
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=4,
        patch_size=2,
    ).eval()  # fmt: skip
    pipe = diffusers.DiTPipeline(transformer, vae(), diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    arguments = {"class_labels": [1, 2], "num_inference_steps": STEPS, "output_type": "np"}
    expected = pipe(generator=torch.Generator().manual_seed(0), **arguments).images
    pipe.scheduler = RectifiedFlowScheduler.from_config(pipe.scheduler.config)
    got = pipe(generator=torch.Generator().manual_seed(0), **arguments).images
    assert abs(got - expected).max() < 2e-3
    pipe.scheduler = RectifiedFlowScheduler.from_config(pipe.scheduler.config, solver="heun")
    pipe(generator=torch.Generator().manual_seed(0), **arguments)


def test_pipelines_find_our_abilities_by_signature():
    parameters = inspect.signature(RectifiedFlowScheduler.set_timesteps).parameters
    assert {"num_inference_steps", "device", "sigmas", "timesteps", "mu"} <= set(parameters)
    assert "generator" in inspect.signature(RectifiedFlowScheduler.step).parameters
