# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import inspect
from typing import Any, Protocol

import PIL.Image
import torch

from ..noise import DDPM, RectifiedFlow


class ReferenceRule(Protocol):
    """How a pipeline sizes reference images. Light enough to travel to the workers of a data loader."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Size (height, width) at which a reference is encoded. Raises a `ValueError` for one that is refused."""

    def prepare(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """A reference at that size, resized as the pipeline does."""


class Family:
    """
    What the trainer has to know of a diffusers pipeline: how to encode, how to call the denoiser, where LoRA goes.

    Encoding calls the pipeline's own methods; the family's tests hold its calls against those of the pipeline.
    Tensor names carry their shape: B images, C channels, H W the denoiser's token grid.

    Args:
        pipeline (`DiffusionPipeline`):
            Loaded pipeline.
        encode_prompt_kwargs (`dict`, *optional*):
            Handed to the pipeline's own `encode_prompt`.
        guidance_scale (`float`, *optional*):
            Guidance that a guidance-distilled denoiser is told. Defaults to the pipeline's own default.
    """

    denoiser_name = "transformer"
    lora_target_modules: list[str] | str = ["to_q", "to_k", "to_v", "to_out.0"]
    # The denoiser's lists of blocks whose hidden states hold target and references, in the order they run; none where the
    # pipeline takes no references
    block_lists: tuple[str, ...] = ()
    process: RectifiedFlow | DDPM

    def __init__(
        self, pipeline, encode_prompt_kwargs: dict[str, Any] | None = None, guidance_scale: float | None = None
    ):
        self.pipeline = pipeline
        self.encode_prompt_kwargs = encode_prompt_kwargs or {}
        taken = ("prompt", "device", "num_images_per_prompt", "do_classifier_free_guidance")  # by the family
        known = [name for name in inspect.signature(pipeline.encode_prompt).parameters if name not in taken]
        if unknown := [name for name in self.encode_prompt_kwargs if name not in known]:
            raise ValueError(
                f"`encode_prompt_kwargs` holds {', '.join(map(repr, unknown))}; what {type(pipeline).__name__} can be given "
                f"is {', '.join(known)}."
            )
        if any(hasattr(part, "_hf_hook") for part in self.modules.values()):
            raise ValueError(
                "The pipeline is offloaded, which would move its denoiser about while it trains. Call "
                "`pipeline.remove_all_hooks()`, or give the trainer a pipeline without offload."
            )
        if guidance_scale is None:
            guidance_scale = inspect.signature(pipeline.__call__).parameters["guidance_scale"].default
        self.guidance_scale = guidance_scale

    @property
    def denoiser(self) -> torch.nn.Module:
        return getattr(self.pipeline, self.denoiser_name)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The pipeline's modules by name."""
        return {name: part for name, part in self.pipeline.components.items() if isinstance(part, torch.nn.Module)}

    @property
    def encoders(self) -> list[torch.nn.Module]:
        """The modules that encode prompts and images."""
        return [module for name, module in self.modules.items() if name.startswith(("vae", "text_encoder"))]

    @property
    def cell_size(self) -> int:
        """Side of one cell of the token grid in pixels. Image sides are multiples of it."""
        return self.pipeline.vae_scale_factor

    @property
    def default_resolution(self) -> int:
        """Side in pixels of the square image that the pipeline makes by default."""
        raise NotImplementedError

    def reference_rule(self, resolution: int | None = None) -> ReferenceRule | None:
        """How the pipeline sizes reference images, at most `resolution` squared; `None` if it takes no references."""
        return None

    @property
    def image_blocks(self) -> list[str]:
        """Names of the blocks of `block_lists`."""
        lists = {name: self.denoiser.get_submodule(name) for name in self.block_lists}
        return [f"{name}.{number}" for name, blocks in lists.items() for number in range(len(blocks))]

    @property
    def feature_blocks(self) -> list[str]:
        """
        Names of the blocks in whose hidden states references and target are compared; empty if there are none. By default
        the one half-way, where features are semantic and still local.
        """
        return self.image_blocks[len(self.image_blocks) // 2 :][:1]

    def token_ranges(
        self, length: int, grid: tuple[int, int], reference_grids: list[tuple[int, int]]
    ) -> tuple[slice, list[slice]]:
        """
        Where a block's sequence of `length` tokens holds the target, and where each reference.

        Args:
            length (`int`):
                Tokens of a block's hidden states, text included where the block mixes it in.
            grid, reference_grids (`tuple[int, int]`):
                Height and width of the token grids of the target and of each reference.
        """
        raise NotImplementedError

    def image_tokens(
        self,
        tokens_BSD: torch.Tensor,
        prompt: dict[str, torch.Tensor],
        grid: tuple[int, int],
        reference_grids: list[tuple[int, int]],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        A block's hidden states at the target's tokens, and at those of each reference. By default at `token_ranges`; for a
        family whose ranges depend on the prompt, so that each row of a batch has its own, to be defined instead of it.
        """
        target, references = self.token_ranges(tokens_BSD.shape[1], grid, reference_grids)
        return tokens_BSD[:, target], [tokens_BSD[:, part] for part in references]

    def encode_prompt(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """What the denoiser needs of `B` prompts; the first axis of each tensor is `B`."""
        raise NotImplementedError

    def encode_image(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1] to clean latents on the token grid, `x_BCHW`."""
        raise NotImplementedError

    def predict(
        self,
        denoiser: torch.nn.Module,
        x_BCHW: torch.Tensor,
        timestep_B: torch.Tensor,
        prompt: dict[str, torch.Tensor],
        references: list[torch.Tensor],
    ) -> torch.Tensor:
        """
        Calls the denoiser as the pipeline does.

        Args:
            denoiser (`torch.nn.Module`):
                The denoiser itself, or what wraps it.
            x_BCHW (`torch.Tensor`):
                Noisy latents on the token grid.
            timestep_B (`torch.Tensor` of shape `(B,)`):
                Noise level as `process` counts it.
            prompt (`dict[str, torch.Tensor]`):
                From `encode_prompt`.
            references (`list[torch.Tensor]`):
                Clean latents of the N references, each of shape `(B, C, h, w)`.

        Returns:
            `torch.Tensor` of shape `(B, C, H, W)`: the prediction, as the pipeline hands it to its scheduler.
        """
        raise NotImplementedError
