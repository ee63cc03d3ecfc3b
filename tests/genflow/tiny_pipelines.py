"""Real diffusers pipelines with tiny random weights, built from configs alone: no hub, no tokenizer, no text encoder.

``build(name)`` gives a :class:`TinyPipeline`; its ``run`` makes latents (or pixels where the pipeline gives no latents)
from embeddings that stand in for a prompt. Tests reach this module through the fixture ``tiny_pipelines``.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

__all__ = ["BUILDERS", "TinyPipeline", "build", "builder"]

STEPS = 3


@dataclass
class TinyPipeline:
    """A pipeline and what it has to be given besides steps, seed, scale and output type.

    Attributes:
        pipe: the pipeline, in float32 on the CPU until ``to``.
        arguments: embeddings, sizes, images.
        scale_name: the name of the argument that is the scale of the pipeline's own CFG.
        network: the name of the denoiser's attribute.
        output_type: what ``run`` asks for.
    """

    pipe: Any
    arguments: dict[str, Any]
    scale_name: str = "guidance_scale"
    network: str = "unet"
    output_type: str = "latent"
    dtype: torch.dtype = field(default=torch.float32)

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that the pipeline's loop calls."""
        return getattr(self.pipe, self.network)

    def to(self, dtype: torch.dtype) -> "TinyPipeline":
        """The same in another dtype, weights and floating inputs."""
        if dtype == self.dtype:
            return self
        self.pipe.to(dtype)
        self.arguments = {key: _cast(value, dtype) for key, value in self.arguments.items()}
        self.dtype = dtype
        return self

    def run(self, scale: float | None = None, steps: int = STEPS, seed: int = 0, **arguments: Any) -> Tensor:
        """The result in float32; ``scale`` is for the pipeline's own CFG (None: the pipeline's default)."""
        if scale is not None:
            arguments[self.scale_name] = scale
        torch.manual_seed(seed)  # what a pipeline draws without its generator
        output = self.pipe(
            **{**self.arguments, "num_inference_steps": steps, "output_type": self.output_type, **arguments},
            generator=torch.Generator().manual_seed(seed),
        )
        result = output.frames if hasattr(output, "frames") else output.images
        return torch.as_tensor(result).float()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_cast(entry, dtype) for entry in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


BUILDERS: dict[str, Callable[..., TinyPipeline]] = {}
"""Every tiny pipeline by name; each builder takes an optional ``scheduler``."""


def build(name: str, scheduler: Any = None, dtype: torch.dtype = torch.float32, **options: Any) -> TinyPipeline:
    """The tiny pipeline called ``name``, with its usual scheduler or with this one; the same weights every time."""
    torch.manual_seed(0)
    tiny = BUILDERS[name](**({} if scheduler is None else {"scheduler": scheduler}), **options)
    for component in tiny.pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
            _wake(component)
    tiny.pipe.set_progress_bar_config(disable=True)
    return tiny.to(dtype)


def _wake(network: torch.nn.Module) -> None:
    """Noise on parameters that networks start at zero, without which a prompt would change nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def builder(function: Callable[..., TinyPipeline]) -> Callable[..., TinyPipeline]:
    """Register a builder under its name."""
    BUILDERS[function.__name__] = function
    return function


def randn(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal numbers of their own seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(*shape: int) -> Tensor:
    """Uniform pixels in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def prompts(dim: int = 8, tokens: int = 5) -> dict[str, Tensor]:
    """A prompt and a negative one, as embeddings."""
    return {
        "prompt_embeds": 2 * randn(1, tokens, dim, seed=1),
        "negative_prompt_embeds": 2 * randn(1, tokens, dim, seed=3),
    }


def pooled(dim: int = 8) -> dict[str, Tensor]:
    """The pooled embeddings that some pipelines want besides."""
    return {
        "pooled_prompt_embeds": randn(1, dim, seed=4),
        "negative_pooled_prompt_embeds": randn(1, dim, seed=5),
    }


def ddim(**options: Any) -> diffusers.DDIMScheduler:
    """Stable Diffusion's schedule without clipping."""
    return diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, **options,
    )  # fmt: skip


def flow(**options: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    """The scheduler of SD3, Flux, Wan and QwenImage."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def unet(in_channels: int = 4, out_channels: int = 4, **options: Any) -> diffusers.UNet2DConditionModel:
    """A text-conditional U-Net of two levels."""
    options = {"cross_attention_dim": 8, **options}
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=in_channels,
        out_channels=out_channels, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=2, **options,
    )  # fmt: skip


def vae(**options: Any) -> diffusers.AutoencoderKL:
    """An autoencoder that halves the sides, to four channels."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, shift_factor=0.1, **options,
    )  # fmt: skip


def _stable_diffusion(cls: type, scheduler: Any, network: Any = None, **parts: Any) -> Any:
    known = inspect.signature(cls.__init__).parameters
    optional = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    parts |= {key: value for key, value in optional.items() if key in known}
    if "requires_safety_checker" in known:
        parts["requires_safety_checker"] = False
    return cls(vae=vae(), unet=network or unet(), scheduler=scheduler or ddim(), **parts)


@builder
def sd(scheduler: Any = None) -> TinyPipeline:
    return TinyPipeline(_stable_diffusion(diffusers.StableDiffusionPipeline, scheduler), prompts())


@builder
def sd_v(scheduler: Any = None) -> TinyPipeline:
    return sd(scheduler or ddim(prediction_type="v_prediction"))


@builder
def sd_img2img(scheduler: Any = None) -> TinyPipeline:
    pipe = _stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline, scheduler)
    return TinyPipeline(pipe, {**prompts(), "image": image(1, 3, 16, 16), "strength": 0.67})


def masked() -> dict[str, Any]:
    """An image and the half of it to paint anew."""
    mask = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)
    return {"image": image(1, 3, 16, 16), "mask_image": mask, "height": 16, "width": 16}


@builder
def sd_inpaint(scheduler: Any = None) -> TinyPipeline:
    pipe = _stable_diffusion(diffusers.StableDiffusionInpaintPipeline, scheduler)
    return TinyPipeline(pipe, {**prompts(), **masked()})


@builder
def sd_inpaint_9(scheduler: Any = None) -> TinyPipeline:
    """The network made for inpainting, which takes the mask and the masked image as five more channels."""
    pipe = _stable_diffusion(diffusers.StableDiffusionInpaintPipeline, scheduler, unet(in_channels=9))
    return TinyPipeline(pipe, {**prompts(), **masked()})


@builder
def controlnet(scheduler: Any = None) -> TinyPipeline:
    network = unet()
    control = diffusers.ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=2,
        conditioning_embedding_out_channels=(4, 8),
    )  # fmt: skip
    pipe = _stable_diffusion(diffusers.StableDiffusionControlNetPipeline, scheduler, network, controlnet=control)
    return TinyPipeline(pipe, {**prompts(), "image": image(1, 3, 16, 16), "height": 16, "width": 16})


@builder
def sdxl(scheduler: Any = None) -> TinyPipeline:
    network = unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32,
        transformer_layers_per_block=(1, 1), use_linear_projection=True,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(), unet=network, scheduler=scheduler or diffusers.EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
            timestep_spacing="leading",
        ), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, add_watermarker=False,
    )  # fmt: skip
    return TinyPipeline(pipe, {**prompts(), **pooled(), "height": 16, "width": 16})


def _sd3(cls: type, scheduler: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
    )  # fmt: skip
    return cls(
        transformer=transformer, scheduler=scheduler or flow(shift=3.0), vae=vae(), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


@builder
def sd3(scheduler: Any = None) -> TinyPipeline:
    arguments = {**prompts(), **pooled(), "height": 16, "width": 16}
    return TinyPipeline(_sd3(diffusers.StableDiffusion3Pipeline, scheduler), arguments, network="transformer")


@builder
def sd3_img2img(scheduler: Any = None) -> TinyPipeline:
    arguments = {**prompts(), **pooled(), "height": 16, "width": 16, "image": image(1, 3, 16, 16), "strength": 0.67}
    return TinyPipeline(_sd3(diffusers.StableDiffusion3Img2ImgPipeline, scheduler), arguments, network="transformer")


@builder
def flux(scheduler: Any = None, guidance_embeds: bool = False) -> TinyPipeline:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=[4, 4, 8], guidance_embeds=guidance_embeds,
    )  # fmt: skip
    pipe = diffusers.FluxPipeline(
        scheduler=scheduler or flow(use_dynamic_shifting=True), vae=vae(), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    arguments = {**prompts(), **pooled(), "height": 16, "width": 16}
    return TinyPipeline(pipe, arguments, "true_cfg_scale", "transformer")


@builder
def dit(scheduler: Any = None) -> TinyPipeline:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=4,
        patch_size=2,
    )  # fmt: skip
    pipe = diffusers.DiTPipeline(transformer, vae(), scheduler or diffusers.DDIMScheduler(clip_sample=False))
    return TinyPipeline(pipe, {"class_labels": [1, 2]}, network="transformer", output_type="np")


@builder
def pixart(scheduler: Any = None) -> TinyPipeline:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        cross_attention_dim=16, caption_channels=8,
    )  # fmt: skip
    if scheduler is None:
        scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="linear")
    pipe = diffusers.PixArtAlphaPipeline(
        tokenizer=None, text_encoder=None, vae=vae(), transformer=transformer, scheduler=scheduler
    )
    mask = torch.ones(1, 5, dtype=torch.long)
    arguments = {
        **prompts(), "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask, "height": 16, "width": 16,
        "use_resolution_binning": False, "negative_prompt": None,
    }  # fmt: skip
    return TinyPipeline(pipe, arguments, network="transformer")


@builder
def kandinsky(scheduler: Any = None) -> TinyPipeline:
    """The 2.2 decoder: an image embedding in place of a prompt, a learned variance."""
    network = unet(
        out_channels=8, addition_embed_type="image", encoder_hid_dim_type="image_proj", encoder_hid_dim=8,
        cross_attention_dim=8, resnet_time_scale_shift="scale_shift", class_embed_type=None,
    )  # fmt: skip
    movq = diffusers.VQModel(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        latent_channels=4, num_vq_embeddings=4, norm_num_groups=8, norm_type="spatial", vq_embed_dim=4,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip
    if scheduler is None:
        scheduler = diffusers.DDPMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, variance_type="learned_range",
            clip_sample=False,
        )  # fmt: skip
    pipe = diffusers.KandinskyV22Pipeline(unet=network, scheduler=scheduler, movq=movq)
    arguments = {
        "image_embeds": 2 * randn(1, 8), "negative_image_embeds": 2 * randn(1, 8, seed=3), "height": 16, "width": 16
    }  # fmt: skip
    return TinyPipeline(pipe, arguments)


@builder
def wan(scheduler: Any = None) -> TinyPipeline:
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=autoencoder, scheduler=scheduler or flow(shift=3.0),
        transformer=transformer,
    )  # fmt: skip
    return TinyPipeline(pipe, {**prompts(), "height": 32, "width": 32, "num_frames": 5}, network="transformer")


@builder
def qwen(scheduler: Any = None) -> TinyPipeline:
    """QwenImage, which after its CFG gives every token the conditional prediction's norm."""
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipe = diffusers.QwenImagePipeline(
        scheduler=scheduler or flow(use_dynamic_shifting=True), vae=autoencoder, text_encoder=None, tokenizer=None,
        transformer=transformer,
    )  # fmt: skip
    mask = torch.ones(1, 5, dtype=torch.long)
    arguments = {
        **prompts(), "prompt_embeds_mask": mask, "negative_prompt_embeds_mask": mask, "height": 32, "width": 32
    }  # fmt: skip
    return TinyPipeline(pipe, arguments, "true_cfg_scale", "transformer")


@builder
def lumina(scheduler: Any = None) -> TinyPipeline:
    """Conditional half first, three of four channels guided, the output turned round, time reversed."""
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=16, ffn_dim_multiplier=None, norm_eps=1e-5, learn_sigma=True, qk_norm=True,
        cross_attention_dim=8, scaling_factor=1.0,
    )  # fmt: skip
    pipe = diffusers.LuminaPipeline(
        transformer=transformer, scheduler=scheduler or flow(), vae=vae(), text_encoder=None, tokenizer=None
    )
    mask = torch.ones(1, 5, dtype=torch.long)
    arguments = {
        **prompts(), "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask, "height": 32, "width": 32
    }  # fmt: skip
    return TinyPipeline(pipe, arguments, network="transformer")


@builder
def z_image(scheduler: Any = None) -> TinyPipeline:
    """Lists in place of batches, and a scale that counts from 0: ``cond + scale (cond - uncond)``."""
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    pipe = diffusers.ZImagePipeline(
        scheduler=scheduler or flow(shift=3.0), vae=vae(), text_encoder=None, tokenizer=None, transformer=transformer
    )
    arguments = {key: [value[0]] for key, value in prompts().items()}
    arguments |= {"prompt": ["a"], "height": 32, "width": 32}
    return TinyPipeline(pipe, arguments, network="transformer")
