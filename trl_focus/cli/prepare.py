# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from argparse import REMAINDER, RawDescriptionHelpFormatter

from .train import METHODS


DESCRIPTION = """\
Encode the pairs of a run, and find out what its settings ask of the model about each of them (the reference's errors, the
gate of subjects), without training:

    trl-focus prepare focus --config run.yaml
    trl-focus prepare --push_to user/encoded-pairs focus --config run.yaml

Training with the same settings then finds all of it; on another machine, with `--prepared user/encoded-pairs`."""


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "prepare",
        help="encode pairs before training",
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--push_to", metavar="DATASET", help="id of a dataset on the Hub to upload it to")
    parser.add_argument("--private", action="store_true", help="make that dataset private")
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("arguments", nargs=REMAINDER, metavar="...", help="settings of the run")
    return parser


def run(args) -> int:
    import sys
    from importlib import import_module

    from ..data.encoded import EncodedRows
    from ..errors import InputError
    from ..hub.encoded import push_encoded
    from ..scripts.arguments import parse
    from ..scripts.training import make_trainer

    script = import_module(f"trl_focus.scripts.{METHODS[args.method]}")
    parsed = parse(script.make_parser(prog=f"trl-focus prepare {args.method}"), args.arguments)
    if parsed.launch:
        raise InputError(
            f"`prepare` runs in one process, and takes no options of `accelerate launch`: {parsed.launch[0]}"
        )
    script_args, training_args, model_args = parsed.arguments
    training_args.push_to_hub = False
    trainer = make_trainer(script.TRAINER, script_args, training_args, model_args)
    trainer.get_train_dataloader()
    parts = {"train": trainer.train_dataset}
    if training_args.eval_strategy != "no":
        trainer.get_eval_dataloader()
        parts["eval"] = trainer.eval_dataset
    if not all(isinstance(rows, EncodedRows) for rows in parts.values()):
        raise InputError(
            "streams and `encode_once: false` leave nothing to prepare: give a dataset whose length is known"
        )
    for name, rows in parts.items():
        size = sum(path.stat().st_size for path in rows.files)
        sys.stdout.write(f"{name}: {len(rows)} pairs, {size / 2**20:,.1f} MiB in {rows.files[0].parent.parent}\n")
    if args.push_to is not None:
        commit = push_encoded(parts.values(), args.push_to, args.private or None)
        sys.stdout.write(f"uploaded to {commit.repo_url}\n")
    return 0
