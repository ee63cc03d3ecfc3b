"""More of the tiny pipelines: what differs from the first ones in how network, state and scheduler meet."""

from typing import Any

import diffusers
import torch
from genflow_tiny_pipelines import (
    TinyPipeline,
    builder,
    ddim,
    flow,
    image,
    masked,
    pooled,
    prompts,
    sdxl,
    unet,
    vae,
    wan,
)  # fmt: skip

__all__: list[str] = []


def masks() -> dict[str, torch.Tensor]:
    """Attention masks of a whole prompt."""
    whole = torch.ones(1, 5, dtype=torch.long)
    return {"prompt_attention_mask": whole, "negative_prompt_attention_mask": whole}


@builder
def sdxl_img2img(scheduler: Any = None) -> TinyPipeline:
    tiny = sdxl(scheduler)
    arguments = {key: value for key, value in tiny.arguments.items() if key not in ("height", "width")}
    arguments |= {"image": image(1, 3, 16, 16), "strength": 0.67}
    return TinyPipeline(diffusers.StableDiffusionXLImg2ImgPipeline(**tiny.pipe.components), arguments)


@builder
def sdxl_inpaint(scheduler: Any = None) -> TinyPipeline:
    tiny = sdxl(scheduler)
    pipe = diffusers.StableDiffusionXLInpaintPipeline(**tiny.pipe.components)
    return TinyPipeline(pipe, {**tiny.arguments, **masked(), "strength": 0.67})


@builder
def kontext(scheduler: Any = None) -> TinyPipeline:
    """Flux Kontext: a reference image's tokens after the latents', and a network distilled for guidance."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    pipe = diffusers.FluxKontextPipeline(
        scheduler=scheduler or flow(use_dynamic_shifting=True), vae=vae(), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    arguments = {**prompts(), **pooled(), "height": 16, "width": 16, "image": image(1, 3, 16, 16)}
    arguments |= {"_auto_resize": False, "max_area": 256}
    return TinyPipeline(pipe, arguments, "true_cfg_scale", "transformer")


@builder
def cogvideox(scheduler: Any = None) -> TinyPipeline:
    """Frames before channels, zero terminal SNR, v-prediction."""
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=8,
        num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2, max_text_seq_length=5,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    if scheduler is None:
        scheduler = diffusers.CogVideoXDDIMScheduler.from_config(
            ddim(prediction_type="v_prediction", timestep_spacing="trailing").config, rescale_betas_zero_snr=True,
            snr_shift_scale=3.0, set_alpha_to_one=True,
        )  # fmt: skip
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=autoencoder, transformer=transformer, scheduler=scheduler
    )
    arguments = {**prompts(), "height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 5}
    return TinyPipeline(pipe, arguments, network="transformer")


@builder
def lumina2(scheduler: Any = None) -> TinyPipeline:
    """Two calls, and the output turned round."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=2, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, axes_dim_rope=[4, 2, 2], axes_lens=[128, 128, 128], cap_feat_dim=8,
    )  # fmt: skip
    pipe = diffusers.Lumina2Pipeline(
        transformer=transformer, vae=vae(), scheduler=scheduler or flow(), text_encoder=None, tokenizer=None
    )
    arguments = {**prompts(), **masks(), "height": 32, "width": 32, "cfg_normalization": False}
    return TinyPipeline(pipe, arguments, network="transformer")


@builder
def if_upscale(scheduler: Any = None) -> TinyPipeline:
    """DeepFloyd's super-resolution: six channels in, of which three are the state, and a variance out."""
    network = unet(in_channels=6, out_channels=6, class_embed_type="timestep")
    if scheduler is None:
        scheduler = diffusers.DDPMScheduler(
            variance_type="learned_range", clip_sample=False, beta_schedule="squaredcos_cap_v2"
        )
    pipe = diffusers.IFSuperResolutionPipeline(
        tokenizer=None, text_encoder=None, unet=network, scheduler=scheduler, safety_checker=None, watermarker=None,
        image_noising_scheduler=diffusers.DDPMScheduler(), feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    arguments = {**prompts(), "image": image(1, 3, 8, 8), "height": 16, "width": 16}
    return TinyPipeline(pipe, arguments, output_type="pt")


@builder
def wan_2_2(scheduler: Any = None) -> TinyPipeline:
    """Two networks, one for the first half of the run and one for the second."""
    tiny = wan(scheduler)
    second = diffusers.WanTransformer3DModel.from_config(tiny.pipe.transformer.config)
    pipe = diffusers.WanPipeline(**{**tiny.pipe.components, "transformer_2": second}, boundary_ratio=0.9)
    return TinyPipeline(pipe, tiny.arguments, network="transformer")
