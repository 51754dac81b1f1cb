# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

# /// script
# dependencies = [
#     "trl-focus",
# ]
# ///

"""
FocusDPO of a diffusers pipeline:

    accelerate launch -m trl_focus.scripts.focus_dpo --config examples/configs/flux2-klein.yaml

Every field of the file can be given on the command line too, which wins: `--resolution 768 --output_dir elsewhere`.
"""

from trl_focus import FocusDPOConfig, FocusDPOTrainer
from trl_focus.scripts import arguments, training


TRAINER = FocusDPOTrainer


def make_parser(subparsers=None, prog=None):
    return arguments.make_parser(FocusDPOConfig, "focus_dpo", subparsers, prog)


def main(script_args, training_args, model_args):
    return training.main(TRAINER, script_args, training_args, model_args)


if __name__ == "__main__":
    raise SystemExit(training.run(make_parser, main))
