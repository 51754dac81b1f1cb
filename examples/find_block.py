# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Finds the block whose features tell your subjects apart best, for `FocusDPOConfig(focus_blocks=[...])`. It trains nothing.

    python -m examples.find_block                                     # pairs from photographs, a random model
    python -m examples.find_block --model black-forest-labs/FLUX.2-klein-base-4B --dataset user/pairs --resolution 512
"""

import argparse

import torch
from datasets import load_dataset

from trl_focus import FocusDPOConfig, FocusDPOTrainer, score_feature_blocks

from .photographs.pipeline import ENCODE_PROMPT_KWARGS, tiny_flux2_klein
from .photographs.scenes import make_pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hub id or folder of a pipeline")
    parser.add_argument("--dataset", help="Hub id of pairs with references and masks; its split 'train' is read")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batches", type=int, default=8)
    options = parser.parse_args()

    settings = {"dtype": torch.bfloat16} if options.model else {}
    prompts = None if options.model else ENCODE_PROMPT_KWARGS
    trainer = FocusDPOTrainer(
        options.model or tiny_flux2_klein(),
        args=FocusDPOConfig(
            output_dir="outputs/find_block",
            resolution=options.resolution,
            model_init_kwargs=settings,
            encode_prompt_kwargs=prompts,
            per_device_train_batch_size=1,
            report_to="none",
        ),
        train_dataset=load_dataset(options.dataset, split="train")
        if options.dataset
        else make_pairs(options.batches, size=(256, 256), reference_size=(128, 128)),
    )
    scores = score_feature_blocks(trainer, options.batches)
    print("area under the ROC curve, by noise level (1: every cell of a subject is found, 0.5: chance)")
    print(f"{'block':<32}  0.125  0.375  0.625  0.875")
    for block, areas in scores.items():
        print(f"{block:<32}  " + "  ".join(f"{area:.3f}" for area in areas))


if __name__ == "__main__":
    main()
