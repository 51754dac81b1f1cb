# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from argparse import ArgumentTypeError

from . import finding, pipelines
from .arguments import count, mapping


MODES = ("best-worst", "target", "corrupt")
# Of the modes that draw, with the defaults. The parser leaves them at `None`, which tells what was given
DRAWING = {
    "model": None,
    "lora": None,
    "call": {},
    "model_init_kwargs": {},
    "n_samples": 4,
    "weights": None,  # by `find`
    "margin": 0.05,
    "dino": None,
    "clip": None,
    "identity_model": None,
    "find": None,
    "offload": False,
}


def _part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise ArgumentTypeError(f"{text!r} is no NUMBER/OF, as in 0/4, 1/4, 2/4 and 3/4")
    return int(number), int(of)


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "pairs",
        help="make preference pairs out of prompts with references",
        description="Make preference pairs of a data set with prompts and references. best-worst: draw images, and take the best "
        "against the worst. target: the data set's own image, `chosen`, against a drawn one. corrupt: that image against itself with "
        "one subject spoilt, by its mask; needs no model. Goes on where it was stopped. Exits with 2 if there is no pair.",
    )
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("dataset", help="id on the Hub, or a folder: pairs without `rejected`, or without both images")
    parser.add_argument("--output_dir", required=True, help="where to; the pairs are in its folder `pairs`")
    parser.add_argument("--config", help="configuration of the dataset")
    parser.add_argument("--split", default="train", help="split to read (default: train)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--rows", type=count, metavar="N", help="take the first N rows (default: all)")
    pipelines.add_arguments(parser)
    parser.add_argument("--n_samples", type=count, help="images drawn of each row (default: 4)")
    parser.add_argument(
        "--weights",
        type=mapping,
        metavar="JSON",
        help='weights of the scores by which images are compared, as in {"identity": 1, "clip_t": 0.5} (default: identity '
        "alone, of each subject where `--find` is given)",
    )
    parser.add_argument("--margin", type=float, help="least difference of such sums (default: 0.05)")
    parser.add_argument("--dino", metavar="MODEL", help="of scores dino/... (default: facebook/dino-vits16)")
    parser.add_argument(
        "--clip", metavar="MODEL", help="of clip_t and clip_i/... (default: openai/clip-vit-base-patch32)"
    )
    parser.add_argument("--identity_model", metavar="MODEL", help="of the others (default: facebook/dinov2-base)")
    finding.add_find(parser)
    parser.add_argument(
        "--kinds",
        nargs="+",
        help="how subjects are spoilt: colour, texture, swap, blur, warp, duplicate, drop (default: all)",
    )
    parser.add_argument("--block_size", type=count, default=32, help="rows that are written at once (default: 32)")
    parser.add_argument("--part", type=_part, default=(0, 1), metavar="NUMBER/OF", help="share of several processes")
    parser.set_defaults(**dict.fromkeys(DRAWING))
    return parser


def run(args) -> int:
    import sys
    from math import isfinite
    from pathlib import Path

    import pyarrow.dataset
    from datasets import disable_progress_bars
    from rich.console import Console
    from rich.markup import escape

    from ..errors import InputError, refusals

    if not sys.stderr.isatty():
        disable_progress_bars()

    if args.mode == "corrupt":
        if given := [name for name in (*DRAWING, *finding.OPTIONS) if getattr(args, name) is not None]:
            options = ", ".join(f"`--{name}`" for name in given)
            raise InputError(
                f"corrupt spoils subjects by their masks, and draws and compares nothing: leave {options} out"
            )
    elif args.kinds is not None:
        raise InputError(f"{args.mode} draws images, and spoils none: leave `--kinds` out")
    elif not args.model:
        raise InputError(f"{args.mode} draws images: give a pipeline, as `--model`")
    for name, default in DRAWING.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    searched = finding.told(args)
    if args.mode == "best-worst" and args.n_samples < 2:
        raise InputError("the best against the worst are of two images at least: set `--n_samples`")
    if args.weights is None:
        args.weights = {"instances/identity" if args.find else "identity": 1.0}
    if not args.weights or not all(
        isinstance(value, int | float) and isfinite(value) for value in args.weights.values()
    ):
        raise InputError("`--weights` are a finite number for each score that counts, and one at least")
    if not isfinite(args.margin):
        raise InputError(f"`--margin` is {args.margin}: give a finite number")

    from ..data.loading import load_preferences
    from ..evaluation.files import keep_settings
    from ..evaluation.summary import NAMES
    from ..pairs import CORRUPTIONS, make_pairs

    scores = [name for name in NAMES if not name.endswith("/photographs")]  # which benchmarks have, and no data set
    if unknown := [name for name in args.weights if name not in scores]:
        raise InputError(f"`--weights` has {', '.join(unknown)}; there are {', '.join(scores)}")
    if not args.find and (apart := [name for name in args.weights if name.startswith("instances/")]):
        raise InputError(
            f"`--weights` has {apart[0]}, of subjects that are cut out, and nothing finds them: set `--find`"
        )
    kinds = tuple(args.kinds or CORRUPTIONS)
    if unknown := [kind for kind in kinds if kind not in CORRUPTIONS]:
        raise InputError(f"`--kinds` has {', '.join(unknown)}; there are {', '.join(CORRUPTIONS)}")
    with refusals():
        dataset = load_preferences(args.dataset, args.config, args.split, args.revision)
        if args.rows is not None:
            dataset = dataset.select(range(min(args.rows, len(dataset))))
        if args.find == "name" and not _has_names(dataset):
            raise InputError(
                "subjects are searched by name, and no row of the dataset names its own: give it `subjects`, or set "
                "`--find reference`"
            )
        names = ("mode", "dataset", "config", "split", "revision", "rows", "seed", "block_size")
        # `searched` tells of `find`, and an offloaded pipeline draws the same images
        drawn = [name for name in DRAWING if name not in ("find", "offload")]
        settings = {name: getattr(args, name) for name in names}
        settings |= (
            {"kinds": kinds} if args.mode == "corrupt" else {name: getattr(args, name) for name in drawn} | searched
        )
        if args.lora:
            settings["content of the LoRA"] = pipelines.content_of_lora(args.lora)
        keep_settings(args.output_dir, settings)
        make, seeds_per_row = _maker(args, kinds)
    about = {} if args.mode == "corrupt" else {"model": args.model, "lora": args.lora, "weights": args.weights}
    made = make_pairs(
        dataset, args.mode, make, args.output_dir, args.seed, seeds_per_row, args.block_size, args.part, about
    )
    console = Console(highlight=False)
    for row, problem in made.problems:
        console.print(f"[yellow]row {row}:[/] {escape(problem)}", soft_wrap=True)
    console.print(
        f"{made.pairs} pairs; {len(made.without)} rows without one"
        + (f" (the first, row {made.without[0][0]}: {escape(made.without[0][1])})" if made.without else "")
        + f"; {len(made.problems)} rows with problems.",
        soft_wrap=True,
    )
    idle = len(dataset) > 0 and not (made.pairs or made.without or made.problems)
    if idle:
        console.print("There was no row for this part: there are fewer blocks of rows than parts.")
    folder = Path(args.output_dir) / "pairs"
    files = [str(file) for file in folder.glob("*.parquet")]  # beside them is what another part has not finished
    if not files:
        if idle:
            return 0
        distorted = made.problems and all("aspect ratios" in problem for _, problem in made.problems)
        hint = ": `--call` needs the target's `height` and `width`" if args.mode == "target" and distorted else ""
        console.print(f"There is no pair to train on{hint}.", soft_wrap=True)
        return 2
    unmasked = pyarrow.dataset.dataset(files).count_rows(filter=pyarrow.dataset.field("chosen_masks").is_null())
    if args.find and unmasked:
        console.print(f"{unmasked} of the pairs have no masks: not all of their subjects were found for sure.")
    masks = " --focus_prior similarity" if unmasked else ""
    console.print(f"To train on them: trl-focus train focus --dataset_name {folder}{masks} ...", soft_wrap=True)
    return 0


def _has_names(dataset) -> bool:
    from ..data.rows import subject_names

    columns = [name for name in ("subjects", "reference_subjects") if name in dataset.column_names]
    return bool(columns) and any(map(subject_names, dataset.select_columns(columns)))


def _maker(args, kinds: tuple[str, ...]):
    """The way in which pairs are made, and how many seeds a row takes."""
    from ..pairs import best_and_worst, target_and_corrupted, target_and_sample, weighted_judge

    if args.mode == "corrupt":
        return target_and_corrupted(kinds), 1

    from ..evaluation import published_scorer, subject_scorer
    from ..evaluation.drawing import draw_image
    from ..evaluation.embedders import CLIP, DINO, DINOV2, Embedder
    from ..evaluation.instances import asked_boxes

    published = [name for name in args.weights if name.startswith(("dino/", "clip"))]
    scorers = []
    if published:
        clip = Embedder(args.clip or CLIP)
        scorers.append(published_scorer(Embedder(args.dino or DINO).images, clip.images, clip.texts))
    if len(published) < len(args.weights):
        scorers.append(subject_scorer(Embedder(args.identity_model or DINOV2).images))
    find = asked_boxes
    if args.find:
        from ..masks import subject_finder

        find = subject_finder(finding.settings(args, args.find))
    pipeline = pipelines.load(args, args.output_dir)
    if args.lora:
        pipelines.load_lora(pipeline, args.lora)

    def draw(item, seed):
        return draw_image(pipeline, item, seed, **args.call)

    way = best_and_worst if args.mode == "best-worst" else target_and_sample
    return way(draw, weighted_judge(scorers, args.weights, find), args.n_samples, args.margin), args.n_samples
