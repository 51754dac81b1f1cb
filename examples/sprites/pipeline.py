# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The small FLUX.2 [klein] pipeline of the sprites benchmark: its shape, the settings it wants, and where it ships."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .world import GROUNDS, SHAPES, SLOTS


BASE = Path(__file__).parent / "base"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of all that is run here

# 4 subjects are 4 x (shape, number, slot), a ground of 2 words, and the template's 2 marks. All three layers are read.
ENCODE_PROMPT_KWARGS = {"max_sequence_length": 16, "text_encoder_out_layers": (1, 2, 3)}
N_STEPS = 20  # of the sampler
LATENT_CHANNELS = 8


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the prompts, and none for commas."""
    specials = ["<pad>", "<unk>", "<start>", "<end>"]
    words = [*SHAPES, "1", "2", "3", "4", *SLOTS, *GROUNDS, "ground"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(specials + words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        chat_template="{% for message in messages %}<start> {{ message.content | replace(',', '') }} <end>{% endfor %}",
    )


def untrained_vae() -> AutoencoderKLFlux2:
    """
    8 pixels a latent; 16 pixels and 32 channels a token.

    It begins near the identity on three channels, residual branches at zero. From the usual initialization it learns patterns
    soon and colours very late: after 100 steps its error was more than twice as large.
    """
    vae = AutoencoderKLFlux2(
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=160,
    )
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d) and not name.endswith(("conv1", "conv2")):
            usual = module.weight.detach().clone()
            nn.init.dirac_(module.weight)
            module.weight.data.add_(usual, alpha=0.5)
    return vae


def untrained_pipeline(vae: AutoencoderKLFlux2, width: int = 128) -> Flux2KleinPipeline:
    """The pipeline around a VAE, with new weights elsewhere."""
    tokenizer = word_tokenizer()
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=16,
            initializer_range=0.1,
            tie_word_embeddings=True,
        )
    )
    transformer = Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=3 * 64,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=False,
    )


def load_base(folder: Path | str = BASE, dtype: torch.dtype = torch.float32) -> Flux2KleinPipeline:
    """The trained pipeline, on the CPU."""
    pipeline = Flux2KleinPipeline.from_pretrained(folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
