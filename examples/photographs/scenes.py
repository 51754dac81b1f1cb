# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs composed from photographs that ship inside scikit-image.

A scene holds two subjects; the rejected scene has the same layout with one of them damaged. The photographs are free:
Chelsea the cat and the cup of coffee are CC0, the astronaut and the space shuttle behind her are NASA's (public
domain). The outlines in `polygons.json` were drawn for this package.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageChops, ImageDraw, ImageFilter


OUTLINES = json.loads(Path(__file__).with_name("polygons.json").read_text())
SUBJECTS = tuple(OUTLINES)
GREY = (128, 128, 128)
GROUNDS = {
    "sandy": ((236, 214, 178), (199, 164, 118)),
    "sky-blue": ((214, 233, 246), (124, 176, 214)),
    "mossy": ((190, 205, 158), (106, 133, 90)),
    "lavender": ((222, 212, 238), (152, 136, 188)),
    "dusky pink": ((243, 214, 212), (196, 138, 146)),
    "turquoise": ((188, 230, 222), (72, 158, 158)),
    "night-blue": ((84, 104, 150), (26, 34, 66)),
    "slate-grey": ((188, 196, 204), (96, 106, 118)),
}
FEATURES = Features(
    prompt=Value("string"),
    chosen=ImageFeature(),
    rejected=ImageFeature(),
    references=List(ImageFeature()),
    reference_masks=List(ImageFeature()),
    chosen_masks=List(ImageFeature()),
    rejected_masks=List(ImageFeature()),
    subjects=List(Value("string")),
    damage=Value("string"),
    damaged=Value("string"),
)


class Sprite(NamedTuple):
    """A subject's crop and mask, and the (left, top, width, height) it takes in a scene."""

    look: Image.Image
    mask: Image.Image
    box: tuple[int, int, int, int]


@cache
def subject(name: str) -> tuple[Image.Image, Image.Image]:
    """The subject cut tightly from its photograph, and its mask."""
    photograph = Image.fromarray(getattr(skimage.data, OUTLINES[name]["photograph"])())
    polygon = [tuple(point) for point in OUTLINES[name]["polygon"]]
    mask = Image.new("L", photograph.size)
    ImageDraw.Draw(mask).polygon(polygon, fill=255)
    mask = mask.filter(ImageFilter.MinFilter(3))  # a pixel inwards, lest the photograph's own background show
    left, top, right, bottom = mask.getbbox()
    box = max(left - 2, 0), max(top - 2, 0), min(right + 2, mask.width), min(bottom + 2, mask.height)
    return photograph.crop(box), mask.crop(box)


def make_pairs(
    n_pairs: int, size: tuple[int, int] = (128, 128), seed: int = 0, reference_size: tuple[int, int] = (64, 64)
) -> Dataset:
    """`n_pairs` preference pairs; sizes are (height, width). Damages take turns, all else is drawn from `seed`."""
    if any(side % 16 for side in size):
        raise ValueError(f"height and width must be multiples of 16, not {size}.")
    rng = np.random.default_rng(seed)
    kinds = list(DAMAGES)
    pairs = [make_pair(rng, kinds[i % len(kinds)], size, reference_size) for i in range(n_pairs)]
    return Dataset.from_list(pairs, features=FEATURES)


def make_pair(rng: np.random.Generator, damage: str, size: tuple[int, int], reference_size: tuple[int, int]) -> dict:
    names = [str(name) for name in rng.permutation(SUBJECTS)]
    subjects, strangers = names[:2], names[2:]
    ground_name = str(rng.choice(list(GROUNDS)))
    ground = paint_ground(rng, size, *GROUNDS[ground_name])
    sprites = lay_out(rng, subjects, size)
    hit = int(rng.integers(2))
    damaged = list(sprites)
    damaged[hit] = DAMAGES[damage](rng, sprites[hit], sprites[1 - hit], subject(strangers[0]))

    chosen, chosen_masks = compose(ground, sprites)
    rejected, rejected_masks = compose(ground, damaged)
    if damage == "swap":  # whoever stands there now, the subject is absent
        rejected_masks[hit] = Image.new("L", rejected.size)
    references, reference_masks = zip(*(draw_reference(name, reference_size) for name in subjects), strict=True)
    return {
        "prompt": "{} and {} on a {} background".format(*(OUTLINES[name]["phrase"] for name in subjects), ground_name),
        "chosen": chosen,
        "rejected": rejected,
        "references": list(references),
        "reference_masks": list(reference_masks),
        "chosen_masks": chosen_masks,
        "rejected_masks": rejected_masks,
        "subjects": subjects,
        "damage": damage,
        "damaged": subjects[hit],
    }


def compose(ground: Image.Image, sprites: Sequence[Sprite]) -> tuple[Image.Image, list[Image.Image]]:
    """The sprites pasted back to front with soft edges, and the visible part of each as a mask."""
    scene, masks = ground.copy(), []
    for look, mask, (left, top, width, height) in sprites:
        matte = Image.new("L", ground.size)
        matte.paste(mask.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        visible = matte.point(lambda value: 255 * (value > 127))
        layer = scene.copy()  # the soft edge may reach past the crop
        layer.paste(look.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        scene.paste(layer, mask=matte.filter(ImageFilter.GaussianBlur(0.5)))
        masks = [ImageChops.subtract(hidden, visible) for hidden in masks] + [visible]
    return scene, masks


def draw_reference(name: str, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """The subject alone on neutral grey, and its mask."""
    height, width = size
    look, mask = subject(name)
    scale = 0.92 * min(height / look.height, width / look.width)
    w, h = round(scale * look.width), round(scale * look.height)
    image, masks = compose(
        Image.new("RGB", (width, height), GREY), [Sprite(look, mask, ((width - w) // 2, (height - h) // 2, w, h))]
    )
    return image, masks[0]


def paint_ground(
    rng: np.random.Generator, size: tuple[int, int], light: tuple[int, ...], dark: tuple[int, ...]
) -> Image.Image:
    """A gradient from `light` to `dark`, roughly downwards, with soft clouds."""
    height, width = size
    angle = rng.uniform(0.2, 0.8) * np.pi
    y, x = np.meshgrid(np.linspace(-0.5, 0.5, height), np.linspace(-0.5, 0.5, width), indexing="ij")
    clouds = Image.fromarray(rng.normal(size=(5, 5)).astype(np.float32)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    blend = 0.5 + np.cos(angle) * x + np.sin(angle) * y + 0.09 * np.asarray(clouds)
    blend = blend.clip(0, 1)[..., None]
    return Image.fromarray(((1 - blend) * light + blend * dark).round().astype(np.uint8))


def lay_out(rng: np.random.Generator, names: Sequence[str], size: tuple[int, int]) -> list[Sprite]:
    """Two subjects side by side, of varied scale and height; the second may overlap the first a little."""
    height, width = size
    cuts = [subject(name) for name in names]
    extents = [fit(look.width / look.height, rng.uniform(0.48, 0.64) * min(size)) for look, _ in cuts]
    shrink = min(1.0, 1.02 * width / sum(w for w, _ in extents), *(0.94 * height / h for _, h in extents))
    extents = [(round(shrink * w), round(shrink * h)) for w, h in extents]
    order = rng.permutation(2)
    free = width - sum(w for w, _ in extents)
    gaps = rng.dirichlet((3, 2, 3)) * free
    left, boxes = 0.0, {}
    for i, gap in zip(order, gaps, strict=False):
        w, h = extents[i]
        left += gap
        # The photograph ends at the astronaut's waist, so she stands on the lower edge.
        top = height - h if names[i] == "astronaut" else round(rng.uniform(0.1, 0.95) * (height - h))
        boxes[i] = (round(left), top, w, h)
        left += w
    return [Sprite(*cut, boxes[i]) for i, cut in enumerate(cuts)]


def fit(aspect: float, side: float) -> tuple[int, int]:
    """The (width, height) of a rectangle of this aspect with the area of a square of this side."""
    return round(side * aspect**0.5), round(side / aspect**0.5)


def rest_on(box: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """A box of another extent on the same foot."""
    left, top, w, h = box
    return left + (w - width) // 2, top + h - height, width, height


def pixels(look: Image.Image, mask: Image.Image) -> np.ndarray:
    """The colours inside the mask, one a row."""
    return np.asarray(look)[np.asarray(mask) > 0]


def recolour(rng: np.random.Generator, sprite: Sprite, other: Sprite, stranger: tuple) -> Sprite:
    """The other subject's colours (mean and spread of each channel), or a stranger's where those change more."""
    own = pixels(sprite.look, sprite.mask)
    plain = (np.asarray(sprite.look) - own.mean(0)) / own.std(0)
    palettes = pixels(other.look, other.mask), pixels(*stranger)
    looks = [(plain * palette.std(0) + palette.mean(0)).clip(0, 255) for palette in palettes]
    look = max(looks, key=lambda look: np.abs(look - np.asarray(sprite.look)).mean())
    return sprite._replace(look=Image.fromarray(look.round().astype(np.uint8)))


def texture(rng: np.random.Generator, sprite: Sprite, other: Sprite, stranger: tuple) -> Sprite:
    """No detail left: blurred or in coarse blocks."""
    look, mask = sprite.look, sprite.mask
    mean = tuple(pixels(look, mask).mean(0).round().astype(int).tolist())
    look = Image.composite(look, Image.new("RGB", look.size, mean), mask)  # nothing of the photograph bleeds in
    coarse = max(look.size) / 9
    if rng.random() < 0.5:
        return sprite._replace(look=look.filter(ImageFilter.GaussianBlur(coarse / 2)))
    blocks = look.resize([round(side / coarse) for side in look.size], Image.Resampling.BOX)
    return sprite._replace(look=blocks.resize(look.size, Image.Resampling.NEAREST))


def swap(rng: np.random.Generator, sprite: Sprite, other: Sprite, stranger: tuple) -> Sprite:
    """A stranger in its place."""
    _, _, width, height = sprite.box
    look, mask = stranger
    return Sprite(look, mask, rest_on(sprite.box, *fit(look.width / look.height, 0.9 * (width * height) ** 0.5)))


def warp(rng: np.random.Generator, sprite: Sprite, other: Sprite, stranger: tuple) -> Sprite:
    """Squeezed to half its width or height."""
    _, _, width, height = sprite.box
    squeezed = (width // 2, height) if rng.random() < 0.5 else (width, height // 2)
    return sprite._replace(box=rest_on(sprite.box, *squeezed))


DAMAGES = {"recolour": recolour, "texture": texture, "swap": swap, "warp": warp}
