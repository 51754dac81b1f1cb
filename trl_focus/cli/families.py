# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.


def add_parser(subparsers):
    parser = subparsers.add_parser("families", help="list the models that can be trained")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def run(args) -> int:
    import json
    import sys

    from ..families.table import TABLE, families_text

    text = TABLE.read_text()
    sys.stdout.write(text if args.json else families_text(json.loads(text)) + "\n")
    return 0
