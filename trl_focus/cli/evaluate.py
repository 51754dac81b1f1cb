# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from argparse import ArgumentTypeError

from . import finding, pipelines
from .arguments import count


def _named_folder(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals or not name.replace("-", "").replace("_", "").isalnum() or not folder:
        raise ArgumentTypeError(f"{text!r} is no NAME=FOLDER, where the name has letters, digits, - and _")
    return name, folder


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "evaluate",
        help="measure whether subjects keep their identity",
        description="Draw the images of a benchmark with a pipeline, without and with a LoRA, or take images that are there, and "
        "measure them: identity, leakage, DINO, CLIP-I, CLIP-T, Subject Collapse Rate. Goes on where it was stopped. Exits with "
        "2 if nothing could be measured.",
    )
    parser.add_argument("benchmark", help="JSON file with prompts and references, as DreamBench by UNO, or your own")
    parser.add_argument("--output_dir", required=True, help="folder of images, scores and report")
    pipelines.add_arguments(parser)
    parser.add_argument(
        "--images",
        type=_named_folder,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="images of another system, <row>_<number>.png, to be measured, too. May be given more than once",
    )
    parser.add_argument("--n_images", type=count, default=1, help="images of each row (default: 1)")
    parser.add_argument("--root", help="folder that the benchmark's paths are relative to (default: its own)")
    parser.add_argument(
        "--photographs_from_folders",
        action="store_true",
        help="all images in a reference's folder show its subject, as in DreamBench: compare with these, too",
    )
    parser.add_argument("--dino", metavar="MODEL", help="default: facebook/dino-vits16, as published")
    parser.add_argument("--clip", metavar="MODEL", help="default: openai/clip-vit-base-patch32, as published")
    parser.add_argument(
        "--identity_model", metavar="MODEL", help="of identity and collapse (default: facebook/dinov2-base)"
    )
    finding.add_find(parser)
    return parser


def run(args) -> int:
    from hashlib import sha256
    from pathlib import Path

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..errors import InputError, refusals

    if not args.model and not args.images:
        raise InputError(
            "there is nothing to measure: give a pipeline (`--model`), images (`--images NAME=FOLDER`), or both"
        )
    if args.lora and not args.model:
        raise InputError("`--lora` is loaded into a pipeline: give it, as `--model`")
    if not args.model and (args.call or args.model_init_kwargs or args.offload):
        raise InputError("`--call`, `--model_init_kwargs` and `--offload` are of a pipeline: give it, as `--model`")
    output_dir = Path(args.output_dir)
    drawn = {"base": output_dir / "images" / "base"} if args.model else {}
    if args.lora:
        drawn["lora"] = output_dir / "images" / "lora"
    systems = {**drawn, **{name: Path(folder) for name, folder in args.images}}
    if len(systems) < len(drawn) + len(args.images):
        raise InputError(f"two systems have one name: {', '.join([*drawn, *(name for name, _ in args.images)])}")
    if missing := [str(folder) for _, folder in args.images if not Path(folder).is_dir()]:
        raise InputError(f"{missing[0]} is no folder: `--images` takes NAME=FOLDER")

    from ..data.schema import listed
    from ..evaluation import asked_boxes, measure, published_scorer, read_benchmark, subject_scorer, write_report
    from ..evaluation.benchmark import content_of
    from ..evaluation.embedders import CLIP, DINO, DINOV2, Embedder
    from ..evaluation.files import keep_settings

    console = Console(highlight=False)
    with refusals():
        benchmark = read_benchmark(args.benchmark, args.root, args.photographs_from_folders)
        models = {
            "DINO": args.dino or DINO,
            "CLIP": args.clip or CLIP,
            "model of identity": args.identity_model or DINOV2,
        }
        settings = {
            "benchmark": sha256(Path(args.benchmark).read_bytes()).hexdigest()[:16],
            "images of the benchmark": content_of(benchmark.items),
            "content of the LoRA": pipelines.content_of_lora(args.lora),
            "photographs_from_folders": args.photographs_from_folders,
            "seed": args.seed,
            **{name: getattr(args, name) for name in ("model", "lora", "call", "model_init_kwargs", "root")},
            **models,
            **finding.told(args),
        }
        keep_settings(output_dir, settings)
        # Before hours of drawing. On the GPU they are when they are used
        dino, clip, identity = (Embedder(name) for name in models.values())
        if not clip.reads_text:
            raise InputError(f"{clip.name} reads no text: give a CLIP model, as `--clip`")
        find = asked_boxes
        if args.find:
            from ..masks.finding import nameless, subject_finder

            if args.find == "name" and all(map(nameless, benchmark.items)):
                raise InputError(
                    "subjects are searched by name, and the benchmark has none: give it `subjects`, or `--find reference`"
                )
            find = subject_finder(finding.settings(args, args.find))
    if benchmark.unread:
        console.print(f"[yellow]warning:[/] fields that are not read: {escape(listed(benchmark.unread))}")
    problems = benchmark.problems + _draw(args, benchmark.items, drawn)
    lines, unread = measure(
        systems,
        benchmark.items,
        [published_scorer(dino.images, clip.images, clip.texts), subject_scorer(identity.images)],
        output_dir,
        args.n_images,
        find,
    )
    # An image that its row's pipeline refused is not missing besides
    refused = {row for row, _ in problems}
    problems = sorted(problems + [(row, text) for row, text in unread if row not in refused])
    for row, problem in problems:
        console.print(f"[yellow]row {row}:[/] {escape(problem)}", soft_wrap=True)
    with refusals():
        about = {name.replace("_", " "): value for name, value in settings.items() if value not in (None, {})}
        facts = write_report(output_dir, lines, benchmark.items, systems, problems, about)
    for remark, told in remarks_of(lines).items():
        first, more = told[0], f" (and of {len(told) - 1} more)" if len(told) > 1 else ""
        console.print(
            f"[yellow]row {first.row}:[/] {escape(f'image {first.number} of {first.system}: {remark}{more}')}",
            soft_wrap=True,
        )
    table = Table("score", *facts["means"], title=f"{facts['counts']['images']} images")
    for name in next(iter(facts["means"].values())):
        found = [scores.get(name) for scores in facts["means"].values()]
        table.add_row(name, *("" if each is None else f"{each['mean']:.3f}" for each in found))
    console.print(table)
    counts = facts["counts"]
    console.print(
        f"{counts['images']} images measured, {counts['images with remarks']} of them with remarks; {counts['rows with problems']} "
        f"rows with problems. The report: {output_dir}/report.html, report.md, report.json",
        soft_wrap=True,
    )
    return 0


def remarks_of(lines) -> dict[str, list]:
    """The images of which each remark was made."""
    found = {}
    for line in lines:
        for remark in line.remarks:
            found.setdefault(remark, []).append(line)
    return found


def _draw(args, items, folders) -> list[tuple[int, str]]:
    """Draws what is missing in the folders of the base and of the LoRA. A pipeline is loaded only where something is."""
    from ..errors import refusals
    from ..evaluation.drawing import draw_images, image_path

    missing = {
        name: folder
        for name, folder in folders.items()
        if not all(image_path(folder, item.row, number).exists() for item in items for number in range(args.n_images))
    }
    if not missing:
        return []
    with refusals():
        pipeline = pipelines.load(args, args.output_dir)
    problems = {}
    # The LoRA first: whether it can be loaded is not to be known only when the base has drawn for hours
    for name, folder in reversed(missing.items()):
        with refusals():
            if name == "lora":
                pipelines.load_lora(pipeline, args.lora)
            elif "lora" in missing:
                pipeline.unload_lora_weights()
        problems |= dict(draw_images(pipeline, items, folder, args.n_images, args.seed, **args.call))
    return [*problems.items()]
