# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.


def add_parser(subparsers):
    parser = subparsers.add_parser("families", help="list the models that can be trained")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def run(args) -> int:
    import sys

    from ..families.__main__ import families_text

    sys.stdout.write(families_text(args.json) + "\n")
    return 0
