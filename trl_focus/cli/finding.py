# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""How commands find subjects, and its arguments."""

BY = ("name", "reference")
OPTIONS = ("confidence", "missing", "overlap", "detector", "segmenter", "matcher")


def add_arguments(parser):
    parser.add_argument(
        "--confidence",
        type=float,
        help="in [0, 1]: below it, a subject counts as not found (default: 0.2 by name, 0.5 by reference)",
    )
    parser.add_argument(
        "--missing",
        choices=("aside", "absent"),
        help="what is made of a subject that is not found in an image: its masks are set aside, or it is absent there "
        "(default: aside)",
    )
    parser.add_argument("--overlap", type=float, help="share of a mask that another may cover (default: 0.5)")
    parser.add_argument(
        "--detector", metavar="MODEL", help="names to boxes (default: google/owlv2-base-patch16-ensemble)"
    )
    parser.add_argument("--segmenter", metavar="MODEL", help="boxes to masks (default: facebook/sam-vit-base)")
    parser.add_argument("--matcher", metavar="MODEL", help="references to boxes (default: facebook/dinov2-base)")


def add_find(parser):
    """For commands that may be told where subjects are in other ways."""
    parser.add_argument(
        "--find", choices=BY, help="find each subject in the images, by its name or by its references, and cut it out"
    )
    add_arguments(parser)


def settings(args, by: str):
    from ..masks import MaskSettings

    return MaskSettings(by, **{name: value for name in OPTIONS if (value := getattr(args, name)) is not None})


def told(args) -> dict[str, str | float]:
    """The settings of `--find`, as they are kept beside results; none where nothing is searched."""
    from dataclasses import asdict

    from ..errors import InputError

    if args.find is None:
        if given := [f"`--{name}`" for name in OPTIONS if getattr(args, name) is not None]:
            raise InputError(f"{', '.join(given)}: without `--find`, no subjects are searched")
        return {}
    return {("find" if name == "by" else name): value for name, value in asdict(settings(args, args.find)).items()}
