# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from . import finding
from .arguments import add_dataset, count


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "masks",
        help="make subject masks for preference pairs",
        description="Find the subjects of preference pairs in all images, by their names or by their references, and write a "
        "dataset with masks. Rows in which something is not sure are set aside with the reason, in a split of their own. "
        "Exits with 2 if no row is left.",
    )
    parser.add_argument("dataset", help="id on the Hub, or a folder")
    parser.add_argument("output", help="folder to write to, which must not be there yet")
    parser.add_argument("--by", choices=finding.BY, default="name", help="search by (default: name)")
    finding.add_arguments(parser)
    parser.add_argument("--batch_size", type=count, default=8, help="images at a time (default: 8)")
    add_dataset(parser)
    return parser


def run(args) -> int:
    import sys
    from pathlib import Path

    from datasets import DatasetDict, disable_progress_bars
    from rich.console import Console
    from rich.markup import escape

    from ..data.loading import load_preferences
    from ..errors import InputError, refusals
    from ..masks import add_masks
    from ..masks.sheet import write_sheets

    if not sys.stderr.isatty():
        disable_progress_bars()
    output = Path(args.output)
    if output.exists():
        raise InputError(f"{output} is there already: name a folder that is not, or remove it")
    settings = finding.settings(args, args.by)
    with refusals():
        dataset = load_preferences(args.dataset, args.config, args.split, args.revision, columns=args.columns)
        dataset = dataset if args.rows is None else dataset.select(range(min(args.rows, len(dataset))))
        kept, aside = add_masks(dataset, settings, args.batch_size)
    splits = {"train": kept, "aside": aside}
    DatasetDict({name: part for name, part in splits.items() if len(part)}).save_to_disk(output)
    console = Console(highlight=False)
    for row in aside.select_columns(["row", "problems"]):
        for problem in row["problems"]:
            console.print(f"[yellow]row {row['row']}:[/] {escape(problem)}", soft_wrap=True)
    for name, part in splits.items():
        if len(part):
            drawn = write_sheets(part, output / "sheets", name)
            first = f"the {drawn} least sure of them" if drawn < len(part) else "all of them"
            console.print(f"{output}/sheets/{name}-*.png show {first}", soft_wrap=True)
    console.print(f"{len(kept)} rows with masks, {len(aside)} set aside.", soft_wrap=True)
    if not len(kept):
        console.print("No row is left to train on.", soft_wrap=True)
        return 2
    return 0
