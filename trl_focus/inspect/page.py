# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The page. What it does to data stands in `edits.py`, what it finds in `findings.py`, what it draws in `maps.py`."""

import html
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import datasets
import PIL.Image

from ..data.images import decode_image
from ..data.rows import reference_subject_indices
from ..errors import InputError
from ..focus.drawing import SUBJECTS, tinted
from .edits import Edits, flip, save, toggle
from .findings import REFUSED, Findings, find
from .maps import Matcher, PairMaps


SIDE = 640  # pixels: longest side of a picture on the page
PICTURES = 12  # of a run, that the page shows
ALL, FLIPPED, DROPPED = "all", "flipped", "dropped"
CSS = """
#trl-chosen label { color: #1b8a5a } #trl-rejected label { color: #d95f02 }
#trl-references .grid-wrap, #trl-run .grid-wrap { padding-top: 2.2em } /* under the label */
.trl-note { color: var(--body-text-color-subdued) }
"""


class View:
    """
    A dataset as the page shows it.

    Args:
        dataset (`datasets.Dataset`):
            Rows of the preference schema, at least one.
        name (`str`):
            What the page calls it.
        matcher ([`Matcher`], *optional*):
            Says where a model matches references.
        resolution (`int`, *optional*, defaults to `512`), stretch (`bool`, *optional*, defaults to `True`):
            At which size focus maps are drawn where there is no model: see [`PairMaps`].
        num_proc (`int`, *optional*):
            Processes that read rows.
        pictures (`Sequence[Path]`, *optional*):
            Files of pictures to show below, of which the first `PICTURES` are.

    Raises:
        ValueError, TypeError: If columns are missing or of another type.
        InputError: If the dataset has no row.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        name: str,
        matcher: Matcher | None = None,
        resolution: int = 512,
        stretch: bool = True,
        num_proc: int | None = None,
        pictures: Sequence[Path] = (),
    ):
        if not len(dataset):
            raise InputError(f"{name} has no rows: there is nothing to look at")
        self.dataset, self.name, self.matcher = dataset.with_format(None), name, matcher
        self.run_pictures = list(pictures)[:PICTURES]
        self.findings: Findings = find(self.dataset, num_proc)
        self._encoded = dataset.with_format("arrow")  # an image that can't be decoded is shown as such

        @lru_cache(maxsize=8)  # for the slider
        def maps(row: int, flipped: bool) -> PairMaps:
            return PairMaps.of(self.row(row, flipped), matcher, resolution, stretch)

        self._maps, self._one_at_a_time = maps, Lock()  # a model's features are read by a hook

    def row(self, number: int, flipped: bool = False) -> dict[str, Any]:
        """A row with its images encoded, flipped or not."""
        row = self._encoded[number].to_pylist()[0]
        return flip(row) if flipped else row

    def rows(self, kind: str, edits: Edits) -> list[int]:
        """Rows of a kind: of [`Findings`], or of all, of the flipped or of the dropped ones."""
        if kind in (FLIPPED, DROPPED):
            return sorted(getattr(edits, kind))
        return self.findings.kinds.get(kind, []) if kind != ALL else list(range(len(self.dataset)))

    def choices(self, edits: Edits) -> list[tuple[str, str]]:
        """What the filter offers, each with its number of rows."""
        kinds = (ALL, *self.findings.kinds, FLIPPED, DROPPED)
        return [(f"{kind} ({len(self.rows(kind, edits))})", kind) for kind in kinds]

    def pictures(self, number: int, flipped: bool, masks: bool) -> tuple[Any, Any, list[tuple[Any, str]]]:
        """Chosen, rejected and the references with their captions, with or without the masks laid over them."""
        row = self.row(number, flipped)
        references = row.get("references") or []
        refused = number in self.findings.kinds.get(REFUSED, [])  # which mask is whose may not be known
        shown = list(range(len(references))) if refused else reference_subject_indices(row)
        over = masks and not refused
        chosen, rejected = (
            _drawn(row[name], (row.get(f"{name}_masks") or []) if over else []) for name in ("chosen", "rejected")
        )
        covers = (row.get("reference_masks") or [None] * len(references)) if over else [None] * len(references)
        drawn = [
            (_drawn(image, [*[None] * subject, mask]), self._caption(row, i, subject))
            for i, (image, mask, subject) in enumerate(zip(references, covers, shown, strict=True))
        ]
        return chosen, rejected, drawn

    def _caption(self, row: dict[str, Any], i: int, subject: int) -> str:
        names = row.get("subjects") or []
        return names[subject] if subject < len(names) else f"reference {i}"

    def map_picture(self, number: int, flipped: bool, level: float) -> tuple[PIL.Image.Image | None, str]:
        """The parts of the focus map at a noise level; or `None`, and why there is none."""
        try:
            with self._one_at_a_time:
                return self._maps(number, flipped).draw(level), ""
        except (ValueError, TypeError) as error:
            return None, f"No focus map: {error}"

    def legend(self, number: int) -> str:
        """Names of the subjects in the colours of their masks, as HTML."""
        names = self.row(number).get("subjects") or []
        return ", ".join(
            f'<b style="color: {SUBJECTS[i % len(SUBJECTS)]}">{html.escape(str(name))}</b>'
            for i, name in enumerate(names)
        )

    def text(self, number: int, kind: str, edits: Edits) -> str:
        """What the page says of a row, as HTML."""
        rows = self.rows(kind, edits)
        place = f"{rows.index(number) + 1} of {len(rows)}" if number in rows else f"none of the {len(rows)}"
        marks = [what for what in (FLIPPED, DROPPED) if number in getattr(edits, what)]
        prompt = html.escape(str(self.row(number).get("prompt")))
        lines = [f'<span class="trl-note">row {number}, {place} · {html.escape(kind)}</span>', f"<big>{prompt}</big>"]
        if legend := self.legend(number):
            lines.append(f"Subjects: {legend}")
        lines += [f"⚠ {html.escape(reason)}" for reason in self.findings.reasons[number]]
        if marks:
            lines.append(f"<b>{' and '.join(marks)}</b>, not saved yet")
        return "<br>".join(lines)


def _drawn(value: Any, masks: Sequence[Any]) -> PIL.Image.Image | None:
    """An image as the page shows it; `None` for one that can't be decoded."""
    try:
        image = decode_image(value).convert("RGB")
        image.thumbnail((SIDE, SIDE))
        small = [None if mask is None else decode_image(mask).convert("L").resize(image.size) for mask in masks]
    except (ValueError, TypeError):
        return None
    return tinted(image, small)


def make_page(view: View):
    """
    Builds the page.

    Args:
        view ([`View`]):
            What it shows.

    Returns:
        `gradio.Blocks`: To be launched with [`launch`].
    """
    import gradio as gr

    most = len(view.dataset) - 1
    with gr.Blocks(title=f"{view.name} · trl-focus", analytics_enabled=False, fill_width=True) as page:
        edits = gr.State(Edits())
        gr.Markdown(f"## {view.name}")
        with gr.Row():
            kind = gr.Dropdown(view.choices(Edits()), value=ALL, label="Show", elem_id="trl-kind", interactive=True)
            row = gr.Number(0, label="Row", precision=0, minimum=0, maximum=most, elem_id="trl-row")
        with gr.Row():
            before = gr.Button("◀ Previous", elem_id="trl-previous")
            after = gr.Button("Next ▶", elem_id="trl-next")
            flip_it = gr.Button("⇄ Flip", elem_id="trl-flip")
            drop_it = gr.Button("✕ Drop", elem_id="trl-drop")
        text = gr.HTML(elem_id="trl-text")
        with gr.Row():
            shown = {"height": 340, "interactive": False, "buttons": ["download", "fullscreen"]}  # none that shares
            chosen = gr.Image(label="chosen", type="pil", elem_id="trl-chosen", **shown)
            rejected = gr.Image(label="rejected", type="pil", elem_id="trl-rejected", **shown)
            references = gr.Gallery(
                label="references", columns=2, object_fit="contain", elem_id="trl-references", **shown
            )
        masks = gr.Checkbox(True, label="Show masks", elem_id="trl-masks")
        level = gr.Slider(0, 1, 0.25, step=0.05, label="Noise level of the focus map", elem_id="trl-level")
        maps = gr.Image(
            type="pil", format="png", interactive=False, show_label=False, buttons=[], elem_id="trl-maps"
        )  # a label or a button would lie on its titles
        why = gr.HTML(elem_id="trl-why")
        with gr.Row(equal_height=True):
            folder = gr.Textbox(
                f"{view.name.rstrip('/')}-edited", label="Folder to save to", elem_id="trl-folder", scale=4
            )
            save_it = gr.Button("Save the edited pairs", variant="primary", elem_id="trl-save")
        said = gr.HTML(elem_id="trl-said")
        if view.run_pictures:
            shown["height"] = 640
            taken = [(PIL.Image.open(file), f"{file.parent.name}, {file.stem}") for file in view.run_pictures]
            gr.Gallery(taken, label="pictures of the run", columns=3, elem_id="trl-run", object_fit="contain", **shown)

        def show_pair(number, kind_, masks_, level_, edits_):
            if number is None or not 0 <= number <= most:
                nothing = f"Rows go from 0 to {most}." if view.rows(kind_, edits_) else f"No row is {kind_}."
                return nothing, None, None, [], None, "", gr.update(choices=view.choices(edits_))
            number = int(number)
            flipped = number in edits_.flipped
            picture, reason = view.map_picture(number, flipped, level_)
            return (
                view.text(number, kind_, edits_),
                *view.pictures(number, flipped, masks_),
                picture,
                html.escape(reason),
                gr.update(choices=view.choices(edits_)),
            )

        def show_map(number, level_, edits_):
            if number is None or not 0 <= number <= most:
                return None, ""
            picture, reason = view.map_picture(int(number), number in edits_.flipped, level_)
            return picture, html.escape(reason)

        def step(by):
            def go(number, kind_, edits_):
                rows = view.rows(kind_, edits_)
                number = -1 if number is None else number
                ahead = [other for other in rows if (other - number) * by > 0]
                return (min(ahead) if by > 0 else max(ahead)) if ahead else number

            return go

        def first(kind_, edits_):
            return next(iter(view.rows(kind_, edits_)), None)

        def change(what):
            def mark(number, edits_):
                return edits_ if number is None else toggle(edits_, what, int(number))

            return mark

        def write(folder_, edits_):
            try:
                count = save(view.dataset, edits_, folder_)
            except (InputError, OSError) as error:
                return f"⚠ {html.escape(str(error))}"
            numbers = f"{len(edits_.flipped - edits_.dropped)} flipped, {len(edits_.dropped)} left out"
            return f"Saved {count} pairs to {html.escape(folder_.strip())}: {numbers}."

        inputs = [row, kind, masks, level, edits]
        outputs = [text, chosen, rejected, references, maps, why, kind]
        page.load(show_pair, inputs, outputs)
        before.click(step(-1), [row, kind, edits], row).then(show_pair, inputs, outputs)
        after.click(step(1), [row, kind, edits], row).then(show_pair, inputs, outputs)
        kind.input(first, [kind, edits], row).then(show_pair, inputs, outputs)
        row.submit(show_pair, inputs, outputs)
        masks.input(show_pair, inputs, outputs)
        level.release(show_map, [row, level, edits], [maps, why])
        flip_it.click(change(FLIPPED), [row, edits], edits).then(show_pair, inputs, outputs)
        drop_it.click(change(DROPPED), [row, edits], edits).then(show_pair, inputs, outputs)
        save_it.click(write, [folder, edits], said)
    return page


def launch(view: View, port: int | None = None, wait: bool = True) -> str:
    """
    Serves the page on this machine alone. It loads nothing from elsewhere and reports nothing to anybody.

    Args:
        view ([`View`]):
            What the page shows.
        port (`int`, *optional*):
            Port to listen on. Defaults to the first that is free from 7860 on.
        wait (`bool`, *optional*, defaults to `True`):
            Whether to return only when the server was stopped.

    Returns:
        `str`: Address of the page.
    """
    import gradio as gr

    page = make_page(view)
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        quiet=True,
        footer_links=[],
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no web fonts
        css=CSS,
        prevent_thread_lock=True,
    )
    if wait:
        page.block_thread()
    return address
