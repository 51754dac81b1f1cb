# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
A world of sprites: scenes of 1 to 4 subjects, each a shape, a colour and a pattern, on a plain ground.

A scene has four quadrants, which prompts name, and a subject stands in one corner of a quadrant, which they don't: two
pictures of one prompt may differ in their layout. Sizes are whole tokens of 16 pixels: a subject has 3x3 of the 10x10 of a
scene, 9 %, so that an error that is averaged over the scene is not focused on it already.
"""

import zlib
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image


SHAPES = ("disc", "square", "triangle", "diamond", "cross", "star")
COLOURS = {
    "red": (220, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 220, 50),
    "green": (40, 160, 60),
    "cyan": (40, 200, 215),
    "blue": (45, 75, 220),
    "purple": (140, 50, 190),
    "pink": (250, 120, 190),
}
PATTERNS = ("solid", "stripes", "dots", "checks")
GROUNDS = {
    "white": (250, 250, 250),
    "sand": (225, 205, 170),
    "mint": (190, 235, 205),
    "sky": (185, 215, 245),
    "slate": (85, 95, 110),
    "night": (20, 20, 35),
}
SLOTS = ("top-left", "top-right", "bottom-left", "bottom-right")

TOKEN = 16  # pixels
SPRITE = 3 * TOKEN
SCENE = 10 * TOKEN
REFERENCE = 4 * TOKEN  # the least that FLUX.2 takes
QUADRANT = SCENE // 2
ROOM = QUADRANT - SPRITE  # how far a subject can move in its quadrant
REFERENCE_PLACE = (0, 0)
REFERENCE_GROUND = (128, 128, 128)
REFERENCE_NOISE = 6  # standard deviation, of 255
DARK = 0.3  # brightness of a pattern's dark phase

Split = Literal["train", "validation", "test"]
BUCKETS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}  # of 10


class Subject(NamedTuple):
    """A shape, a colour and a pattern, each an index into the world's names."""

    shape: int
    colour: int
    pattern: int

    @property
    def held_out(self) -> bool:
        """Whether only test scenes of unseen subjects show it: one combination in eight."""
        return (self.shape + self.colour + 2 * self.pattern) % 8 == 0


SUBJECTS = tuple(
    Subject(shape, colour, pattern)
    for shape in range(len(SHAPES))
    for colour in range(len(COLOURS))
    for pattern in range(len(PATTERNS))
)


class Scene(NamedTuple):
    """
    What a picture shows.

    Attributes:
        subjects (`tuple[Subject, ...]`):
            Subjects, in the order of their references.
        slots (`tuple[int, ...]`):
            Quadrant of each.
        corners (`tuple[int, ...]`):
            Corner of its quadrant in which each stands, in the order of the slots' names.
        ground (`int`):
            Colour of the ground.
        texture (`int`, *optional*, defaults to `0`):
            Seed of a texture on the ground.
        strength (`float`, *optional*, defaults to `0.0`):
            Standard deviation of the texture, of a brightness of 1; 0 is a plain ground.
    """

    subjects: tuple[Subject, ...]
    slots: tuple[int, ...]
    corners: tuple[int, ...]
    ground: int
    texture: int = 0
    strength: float = 0.0

    @property
    def places(self) -> list[tuple[int, int]]:
        """Top and left of each subject, in pixels."""
        return [place_of(*where) for where in zip(self.slots, self.corners, strict=True)]


def place_of(slot: int, corner: int) -> tuple[int, int]:
    """Top and left, in pixels, of a subject in a corner of a quadrant."""
    return slot // 2 * QUADRANT + corner // 2 * ROOM, slot % 2 * QUADRANT + corner % 2 * ROOM


def generator(split: Split, *key: int) -> np.random.Generator:
    """The random numbers of a split: no two splits, and no two keys of one length, share any."""
    return np.random.default_rng(np.random.SeedSequence([tuple(BUCKETS).index(split), *key]))


def split_of(scene: Scene) -> Split:
    """The one split that may ask for this scene. It depends on what stands where, not on the order of references."""
    content = sorted(zip(scene.slots, scene.subjects, strict=True)), scene.ground
    bucket = (
        zlib.crc32(repr([(slot, *map(int, subject)) for slot, subject in content[0]] + [content[1]]).encode()) % 10
    )
    return next(split for split, buckets in BUCKETS.items() if bucket in buckets)


def draw_scene(rng: np.random.Generator, split: Split, n_subjects: int, unseen: bool = False) -> Scene:
    """
    Draws a scene whose subjects differ from each other in every attribute, so that every leak can be told.

    Args:
        rng (`np.random.Generator`):
            From [`generator`] of the same split.
        split (`str`):
            Split that the scene belongs to.
        n_subjects (`int`):
            Subjects, 1 to 4.
        unseen (`bool`, *optional*, defaults to `False`):
            Only subjects that are held out from all other scenes, instead of none of them.
    """
    while True:
        shapes = rng.permutation(len(SHAPES))[:n_subjects].tolist()
        colours = rng.permutation(len(COLOURS))[:n_subjects].tolist()
        patterns = rng.permutation(len(PATTERNS))[:n_subjects].tolist()
        subjects = tuple(map(Subject, shapes, colours, patterns))
        slots = tuple(rng.permutation(len(SLOTS))[:n_subjects].tolist())
        corners = tuple(rng.integers(4, size=n_subjects).tolist())
        scene = Scene(subjects, slots, corners, int(rng.integers(len(GROUNDS))))
        if all(subject.held_out == unseen for subject in subjects) and split_of(scene) == split:
            return scene


def leaks(scene: Scene, which: int) -> list[Scene]:
    """
    All scenes in which one attribute of one subject is replaced by that of another: what attribute leakage looks like.

    Subjects that are held out are not among them, unless the scene shows such subjects itself.
    """
    subject, found = scene.subjects[which], []
    for other in scene.subjects[:which] + scene.subjects[which + 1 :]:
        for attribute in range(len(subject)):
            values = [*subject]
            values[attribute] = other[attribute]
            leaked = Subject(*values)
            if subject.held_out or not leaked.held_out:
                subjects = (*scene.subjects[:which], leaked, *scene.subjects[which + 1 :])
                found.append(scene._replace(subjects=subjects))
    return found


def prompt_of(scene: Scene) -> str:
    """
    Names each subject's shape, its reference and its slot, and the ground. Colour and pattern are for the reference to
    tell.
    """
    named = enumerate(zip(scene.subjects, scene.slots, strict=True), start=1)
    phrases = [f"{SHAPES[subject.shape]} {image} {SLOTS[slot]}" for image, (subject, slot) in named]
    return ", ".join([*phrases, f"{[*GROUNDS][scene.ground]} ground"])


@cache
def shape_coverage(shape: int) -> np.ndarray:
    """How much of each pixel a shape covers, of shape `(SPRITE, SPRITE)`, in [0, 1]."""
    fine = 8
    y, x = ((np.mgrid[: SPRITE * fine, : SPRITE * fine] + 0.5) / (SPRITE * fine) * 2 - 1) / 0.96
    radius, angle = np.hypot(x, y), np.arctan2(x, -y)
    star = np.abs((angle / (2 * np.pi) * 5 + 0.5) % 1 - 0.5) * 2  # 0 at a point of the star, 1 between two
    inside = (
        radius < 0.95,
        np.maximum(np.abs(x), np.abs(y)) < 0.85,
        (y < 0.85) & (np.abs(x) < (y + 0.95) / 1.9),
        np.abs(x) + np.abs(y) < 1,
        (np.minimum(np.abs(x), np.abs(y)) < 0.36) & (np.maximum(np.abs(x), np.abs(y)) < 0.95),
        radius < 1 - 0.52 * star,
    )[shape]
    return inside.reshape(SPRITE, fine, SPRITE, fine).mean(axis=(1, 3))


@cache
def pattern_phase(pattern: int) -> np.ndarray:
    """Where a pattern is bright, of shape `(SPRITE, SPRITE)`, in [0, 1]."""
    fine, period = 8, 12
    y, x = (np.mgrid[: SPRITE * fine, : SPRITE * fine] + 0.5) / fine
    bright = (
        np.ones_like(x, dtype=bool),
        y % period < period / 2,
        np.hypot(x % period - period / 2, y % period - period / 2) > period / 3,
        (x % (2 * period) < period) == (y % (2 * period) < period),
    )[pattern]
    return bright.reshape(SPRITE, fine, SPRITE, fine).mean(axis=(1, 3))


@cache
def sprite(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """A subject's colours of shape `(SPRITE, SPRITE, 3)`, in [0, 255], and its coverage."""
    phase = DARK + (1 - DARK) * pattern_phase(subject.pattern)
    return phase[:, :, None] * np.array([*COLOURS.values()][subject.colour]), shape_coverage(subject.shape)


def texture(seed: int, strength: float) -> np.ndarray:
    """A soft texture of shape `(SCENE, SCENE, 3)` to be added to the ground: blobs a token wide, in all colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((SCENE // TOKEN + 2, SCENE // TOKEN + 2, 3))
    layers = [
        Image.fromarray(channel.astype(np.float32)).resize((SCENE, SCENE), Image.Resampling.BICUBIC)
        for channel in np.moveaxis(coarse, -1, 0)
    ]
    return 255 * strength * np.stack([np.asarray(layer) for layer in layers], axis=-1)


def paste(canvas: np.ndarray, subject: Subject, place: tuple[int, int]) -> None:
    colours, coverage = sprite(subject)
    window = canvas[place[0] : place[0] + SPRITE, place[1] : place[1] + SPRITE]
    window += coverage[:, :, None] * (colours - window)


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene, of shape `(SCENE, SCENE, 3)` and dtype uint8."""
    canvas = np.empty((SCENE, SCENE, 3))
    canvas[:] = [*GROUNDS.values()][scene.ground]
    if scene.strength:
        canvas += texture(scene.texture, scene.strength)
    for subject, place in zip(scene.subjects, scene.places, strict=True):
        paste(canvas, subject, place)
    return canvas.round().clip(0, 255).astype(np.uint8)


def render_reference(subject: Subject, rng: np.random.Generator) -> np.ndarray:
    """A reference of shape `(REFERENCE, REFERENCE, 3)` and dtype uint8: the subject on grey, with a little noise."""
    canvas = np.empty((REFERENCE, REFERENCE, 3))
    canvas[:] = REFERENCE_GROUND
    paste(canvas, subject, REFERENCE_PLACE)
    canvas += rng.normal(0, REFERENCE_NOISE, canvas.shape)
    return canvas.round().clip(0, 255).astype(np.uint8)


def place_mask(size: int, place: tuple[int, int], shape: int) -> np.ndarray:
    """The mask of a shape in an image of `size` squared, of dtype uint8: 255 where it covers half a pixel or more."""
    mask = np.zeros((size, size), np.uint8)
    mask[place[0] : place[0] + SPRITE, place[1] : place[1] + SPRITE][shape_coverage(shape) >= 0.5] = 255
    return mask


def scene_masks(scene: Scene) -> list[np.ndarray]:
    """The exact mask of each subject, each of shape `(SCENE, SCENE)`."""
    return [
        place_mask(SCENE, place, subject.shape) for subject, place in zip(scene.subjects, scene.places, strict=True)
    ]


def references_of(subjects: Sequence[Subject], rng: np.random.Generator) -> list[Image.Image]:
    """A reference for each subject."""
    return [Image.fromarray(render_reference(subject, rng)) for subject in subjects]
