# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from .arguments import add_dataset, count


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "validate",
        help="check preference pairs before training",
        description="Read preference pairs as training does, say what they hold, and name every problem with its row. "
        "Exits with 2 if training would refuse them.",
    )
    parser.add_argument("dataset", help="id on the Hub, or a folder")
    add_dataset(parser)
    parser.add_argument("--streaming", action="store_true", help="read rows as they come, without a download first")
    parser.add_argument("--ties", choices=("error", "drop"), default="error", help="as in training (default: error)")
    parser.add_argument(
        "--crop", choices=("none", "center", "random"), default="none", help="as in training (default: none)"
    )
    parser.add_argument("--resolution", type=count, default=1024, help="as in training (default: 1024)")
    parser.add_argument("--num_proc", type=count, help="processes that read rows")
    return parser


def run(args) -> int:
    import sys

    from datasets import disable_progress_bars
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..data.inspection import inspect_dataset
    from ..data.loading import load_preferences
    from ..errors import refusals

    if not sys.stderr.isatty():
        disable_progress_bars()
    with refusals():
        dataset = load_preferences(args.dataset, args.config, args.split, args.revision, args.streaming, args.columns)
        found = inspect_dataset(dataset, args.rows, args.ties, args.crop, args.resolution, args.num_proc)
    console = Console(highlight=False)
    table = Table(title=escape(f"{args.dataset}, {args.split}"), show_header=False, title_justify="left")
    for name, value in found.summary.items():
        table.add_row(name, value)
    console.print(table)
    for warning in found.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    for row, problem in sorted(found.problems, key=lambda each: each[0]):
        console.print(f"[red]row {row}:[/] {escape(problem)}", soft_wrap=True)
    if found.problems:
        console.print(f"{len(found.problems)} problems: training would refuse these pairs.", soft_wrap=True)
        return 2
    console.print("No problem: these pairs can be trained on.", soft_wrap=True)
    return 0
