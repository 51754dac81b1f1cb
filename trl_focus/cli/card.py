# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.


def add_parser(subparsers):
    parser = subparsers.add_parser("card", help="show the card of a trained model, or write it anew")
    parser.add_argument(
        "model", metavar="FOLDER_OR_REPO", help="folder of a run or of a checkpoint, or id of a model on the Hub"
    )
    parser.add_argument(
        "--rewrite",
        action="store_true",
        help="write README.md of a folder anew, from the run's facts (card.json) and the pictures that are there",
    )
    return parser


def _printable(text: str) -> str:
    """Without what would command the terminal: anybody may have written the card."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def run(args) -> int:
    from pathlib import Path

    from huggingface_hub import ModelCard
    from huggingface_hub.errors import LocalEntryNotFoundError
    from rich.console import Console
    from rich.markdown import Markdown

    from ..errors import InputError, refusals

    folder = Path(args.model)
    file = folder / "README.md"
    if args.rewrite and not folder.is_dir():
        raise InputError(f"{folder} is no folder: only the card of a run that is here can be written anew")
    if folder.exists() and not file.is_file() and not args.rewrite:
        raise InputError(f"{folder} has no README.md: a run writes one when it saves its model")
    try:
        with refusals():
            if args.rewrite:
                from ..hub.card import write_card

                write_card(folder)
            card = ModelCard.load(file if file.is_file() else args.model)
    except LocalEntryNotFoundError as error:
        raise ConnectionError(f"{args.model} is no folder here, and the Hub can't be reached: {error}") from error
    console = Console()
    console.print(_printable(card.data.to_yaml().rstrip()), highlight=False, markup=False, style="dim", soft_wrap=True)
    console.print(Markdown(_printable(card.text)))
    return 0
