# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import inspect
from collections.abc import Callable, Iterable
from itertools import accumulate, chain
from typing import Any

import PIL.Image
import torch
from diffusers import DiffusionPipeline

from ..noise import DDPM, RectifiedFlow


# What says where on the Hub a pipeline is, of the keyword arguments with which it is loaded
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class ReferenceRule:
    """How a pipeline sizes reference images. Light enough to travel to the workers of a data loader."""

    def among(self, count: int) -> "ReferenceRule":
        """The rule for a reference that is one of so many of a prompt."""
        return self

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Size (height, width) at which a reference is encoded. Raises a `ValueError` for one that is refused."""
        raise NotImplementedError

    def prepare(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """A reference at that size, resized as the pipeline does."""
        raise NotImplementedError

    def prepare_for_prompt(self, image: PIL.Image.Image) -> PIL.Image.Image | None:
        """A reference as the prompt's encoder sees it, from the original image; `None` if it does not look at any."""
        return None


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
    reference_counts: tuple[int, int | None] = (0, 0)  # fewest and most references of a prompt; `None` is no limit
    # The denoiser's lists of blocks whose hidden states hold target and references, in the order they run
    block_lists: tuple[str, ...] = ()
    # What training can't do without, by the beginnings of their names, and what of it may be missing
    needed_components: tuple[str, ...] = ("vae", "text_encoder", "tokenizer", "processor", "scheduler")
    optional_components: tuple[str, ...] = ()
    processors: dict[str, str] = {}  # classes of transformers' processors that a pipeline's index need not name
    prediction_type = "flow"  # what its scheduler takes: `"flow"`, or `"epsilon or v"`
    process: RectifiedFlow | DDPM
    looks_distilled = False  # whether the scheduler is one of models that are sampled in few steps alone
    reference_positions: str | None = None  # where references stand, if not as in the pipeline
    sampled_by_helper = False  # whether some references are beyond the pipeline's own call

    def __init__(
        self, pipeline, encode_prompt_kwargs: dict[str, Any] | None = None, guidance_scale: float | None = None
    ):
        self.check_components(name for name, part in pipeline.components.items() if part is None)
        self.pipeline = pipeline
        self.encode_prompt_kwargs = encode_prompt_kwargs or {}
        # by the family
        taken = (
            "prompt",
            "image",
            "num_condition_images",
            "device",
            "num_images_per_prompt",
            "do_classifier_free_guidance",
        )
        known = [name for name in self.encode_defaults if name not in taken]
        if unknown := [name for name in self.encode_prompt_kwargs if name not in known]:
            raise ValueError(
                f"`encode_prompt_kwargs` holds {', '.join(map(repr, unknown))}; what {type(pipeline).__name__} can be given "
                f"is {', '.join(known)}."
            )
        if guidance_scale is None:
            guidance_scale = self.call_defaults.get("guidance_scale")
        self.guidance_scale = guidance_scale

    @classmethod
    def load(cls, name: str, **kwargs):
        """The pipeline at a Hub id or in a folder, by diffusers' keyword arguments."""
        return DiffusionPipeline.from_pretrained(name, **kwargs, use_safetensors=True)

    @property
    def model_name(self) -> str | None:
        """Hub id or folder that the pipeline was loaded from."""
        return self.pipeline.name_or_path

    @property
    def call_defaults(self) -> dict[str, Any]:
        """What the pipeline can be called with, and the default of each."""
        return _defaults(self.pipeline.__call__)

    @property
    def encode_defaults(self) -> dict[str, Any]:
        """What the pipeline's own encoding of prompts can be given, and the default of each."""
        return _defaults(self.pipeline.encode_prompt)

    def call_settings(self, side: int) -> dict[str, Any]:
        """What the pipeline is called with to draw as in training: images of `side` squared, prompts encoded alike."""
        settings = {"height": side, "width": side, **self.encode_prompt_kwargs}
        return {name: value for name, value in settings.items() if name in self.call_defaults}

    @classmethod
    def check_components(cls, missing: Iterable[str]):
        """Refuses a pipeline that lacks components that training needs."""
        needed = (*cls.needed_components, cls.denoiser_name)
        if missing := [name for name in missing if name.startswith(needed) and name not in cls.optional_components]:
            raise ValueError(
                f"The pipeline has no {', '.join(f'`{name}`' for name in missing)}, and training needs it. Load the pipeline "
                "whole."
            )

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
        """Side of one cell of the token grid in pixels."""
        return self.pipeline.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        """What the sides of an image must be multiples of, in pixels."""
        return self.cell_size

    @property
    def default_resolution(self) -> int:
        """Side in pixels of the square image that the pipeline makes by default."""
        raise NotImplementedError

    def reference_rule(self, resolution: int | None = None) -> ReferenceRule | None:
        """How the pipeline sizes reference images, at most `resolution` squared; `None` if it takes no references."""
        return None

    def place_references(self, positions: str):
        """
        Has a denoiser whose pipeline takes no references look at some, whose tokens stand where `positions` says.

        Raises:
            ValueError: If nobody has shown that the model can learn that.
        """
        raise ValueError(
            f"`reference_positions={positions!r}` is for models whose pipeline takes no references and that can learn to "
            f"(`FluxPipeline`). Leave it out for {type(self.pipeline).__name__}."
        )

    def sampled_in(self, steps: int):
        """Has it trained at no other noise levels than those of a sampling in so many steps, as it was distilled for."""
        raise ValueError(
            f"`sampling_steps={steps}` is for Stable Diffusion's UNets that were distilled to few steps (SDXL-Turbo). Leave "
            f"it out for {type(self.pipeline).__name__}."
        )

    @property
    def image_blocks(self) -> list[str]:
        """Names of the blocks of `block_lists`; empty where no references are taken."""
        if self.reference_counts[1] == 0:
            return []
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
        Where a block's sequence of `length` tokens holds the target, and where each reference: here the target, then the
        references, at its end.

        Args:
            length (`int`):
                Tokens of a block's hidden states, text included where the block mixes it in.
            grid, reference_grids (`tuple[int, int]`):
                Height and width of the token grids of the target and of each reference.
        """
        sizes = [height * width for height, width in (grid, *reference_grids)]
        starts = accumulate(sizes, initial=length - sum(sizes))
        target, *references = (slice(start, start + size) for start, size in zip(starts, sizes, strict=False))
        return target, references

    def image_tokens(
        self,
        tokens_BSD: torch.Tensor,
        prompt: dict[str, torch.Tensor],
        grid: tuple[int, int],
        reference_grids: list[tuple[int, int]],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        A block's hidden states at the tokens of the target, and at those of each reference. By default these are the
        `token_ranges`; a family where they depend on the prompt, so that each row of a batch has its own, defines this.
        """
        target, references = self.token_ranges(tokens_BSD.shape[1], grid, reference_grids)
        return tokens_BSD[:, target], [tokens_BSD[:, part] for part in references]

    @property
    def tokenizer(self):
        """The tokenizer that decides how much of a prompt is read: the pipeline's last one."""
        parts = self.pipeline.components
        last = parts[
            max(name for name in parts if name.startswith(("tokenizer", "processor")) and parts[name] is not None)
        ]
        return getattr(last, "tokenizer", last)  # a processor has one

    @property
    def template_tokens(self) -> int:
        """How many of the tokens that are read are not the prompt's own."""
        return self.tokenizer.num_special_tokens_to_add()

    @property
    def max_prompt_tokens(self) -> int | None:
        """How many tokens of a prompt are read before it is cut off; `None` if it never is."""
        limit = self.encode_prompt_kwargs.get("max_sequence_length", self.encode_defaults.get("max_sequence_length"))
        longest = self.tokenizer.model_max_length
        return (longest if limit is None else min(limit, longest)) - self.template_tokens

    def encode_prompt(
        self, prompts: list[str], references: list[list[PIL.Image.Image]] | None = None
    ) -> dict[str, torch.Tensor | list]:
        """
        What the denoiser needs of `B` prompts.

        Args:
            prompts (`list[str]`):
                The prompts.
            references (`list[list[PIL.Image.Image]]`, *optional*):
                The N references of each prompt, as [`ReferenceRule.prepare_for_prompt`] gives them. Families whose prompt's
                encoder does not look at references pass over them.

        Returns:
            `dict`: tensors whose first axis is `B`, or lists of length `B`.
        """
        raise NotImplementedError

    # Whether `stack_prompts` joins prompts of any length; else those of one batch have one
    pads_prompts = False

    @staticmethod
    def stack_prompts(prompts: list[dict[str, torch.Tensor | list]]) -> dict[str, torch.Tensor | list]:
        """What `encode_prompt` gives for several prompts, of what it gave for each of them alone."""
        columns = {name: [prompt[name] for prompt in prompts] for name in prompts[0]}
        return {
            name: torch.cat(parts) if isinstance(parts[0], torch.Tensor) else [*chain.from_iterable(parts)]
            for name, parts in columns.items()
        }

    def sample(
        self,
        prompt: str | list[str],
        references: list[PIL.Image.Image],
        reference_resolution: int | None = None,
        **kwargs,
    ) -> Any:
        """
        Calls the pipeline with references, placed and sized as in training.

        Args:
            prompt (`str` or `list[str]`):
                The prompt.
            references (`list[PIL.Image.Image]`):
                RGB images, or none.
            reference_resolution (`int`, *optional*):
                As in training, where the pipeline leaves a choice.
            kwargs:
                What else the pipeline is called with.
        """
        if references:
            kwargs["image"] = references[0] if self.reference_counts[1] == 1 else references
        return self.pipeline(prompt=prompt, **kwargs)

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


def _defaults(function: Callable) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
