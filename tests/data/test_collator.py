# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import io

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

from tests.fixtures.pairs import make_pairs, random_image, random_mask
from trl_focus.data.batches import PreferenceRows, RowKey
from trl_focus.data.collator import DataCollatorForDiffusionPreference, image_to_tensor
from trl_focus.data.layout import LayoutRule, target_size
from trl_focus.families.flux2 import Flux2References


CELL = 16
ORIENTATION = PIL.Image.ExifTags.Base.Orientation
CROPS = ["none", "center", "random"]


def collator(resolution=64, **kwargs):
    rule = LayoutRule(resolution, CELL, Flux2References(Flux2ImageProcessor(), CELL, 96**2), stretch=False)
    return DataCollatorForDiffusionPreference(rule, CELL, **kwargs)


def noise(size, seed=0):
    return random_image(np.random.default_rng(seed), size, smooth=False)


def row_of(chosen=None, rejected=None, key=None, **columns):
    chosen = chosen or noise((64, 64))
    return {"prompt": "a cat", "chosen": chosen, "rejected": rejected or chosen, "key": key or RowKey(0), **columns}


def pixels(tensor_CHW):
    return tensor_CHW.permute(1, 2, 0).numpy()


def equal(one, other):
    """Whether two results are the same in each tensor and value."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


# ---- Batches ----


def test_batch():
    data = make_pairs(3, n_references=2)
    rows = PreferenceRows(data, [None] * 3)
    batch = collator()([rows[RowKey(2, 5)], rows[RowKey(0, 5)], rows[RowKey(1, 5, counts=False)]])
    assert batch["prompt"] == [data[i]["prompt"] for i in (2, 0, 1)]
    assert batch["row"] == [2, 0, 1] and len({*batch["seed"]}) == 3
    assert batch["counts"].dtype == torch.float32 and batch["counts"].tolist() == [1, 1, 0]
    for name in ("chosen", "rejected"):
        assert batch[name].dtype == torch.uint8 and batch[name].shape == (3, 3, 64, 64)
        assert np.array_equal(pixels(batch[name][0]), data[2][name])
        masks = batch[f"{name}_masks"]
        assert masks.dtype == torch.float32 and masks.shape == (3, 2, 4, 4)
        assert 0 <= masks.min() and masks.max() <= 1 and masks.any()
    assert [images.shape for images in batch["references"]] == [(3, 3, 64, 64)] * 2
    assert np.array_equal(pixels(batch["references"][1][0]), data[2]["references"][1])


class SeenTwice(Flux2References):
    """References that the prompt's encoder sees too, in thumbnails of the original."""

    def prepare_for_prompt(self, image):
        return image.reduce(2)


def test_references_for_the_prompts_encoder():
    row = row_of(references=[noise((200, 96), 1), noise((64, 80), 2)])
    batch = collator()([row, row])
    assert batch["prompt_references"] == [[], []]  # FLUX.2's does not look at them
    rule = LayoutRule(64, CELL, SeenTwice(Flux2ImageProcessor(), CELL, 96**2))
    twice = DataCollatorForDiffusionPreference(rule, CELL)([row, row])
    assert [[image.size for image in images] for images in twice["prompt_references"]] == [[(100, 48), (32, 40)]] * 2
    for images in twice["prompt_references"]:
        for image, original in zip(images, row["references"], strict=True):
            assert np.array_equal(image, original.reduce(2))
    assert twice["references"][0].shape == batch["references"][0].shape


def test_rows_without_references_and_masks():
    batch = collator()([row_of(), row_of(references=None, chosen_masks=None), row_of(references=[])])
    assert batch["references"] == []
    assert not {"chosen_masks", "rejected_masks"} & batch.keys()


def test_masks_missing_in_one_row():
    masks = [random_mask(np.random.default_rng(0))]
    whole = row_of(chosen_masks=masks, rejected_masks=masks)
    assert {"chosen_masks", "rejected_masks"} < collator()([whole, whole]).keys()
    batch = collator()([whole, row_of(chosen_masks=masks, rejected_masks=None)])
    assert "chosen_masks" in batch and "rejected_masks" not in batch
    assert "chosen_masks" not in collator()([whole, row_of()])


def test_subjects_are_padded():
    white, grey = PIL.Image.new("L", (64, 64), 255), PIL.Image.new("L", (64, 64), 51)
    masks = [[white], [grey, None, white], []]
    batch = collator()([row_of(chosen_masks=row, rejected_masks=row) for row in masks])
    for name in ("chosen_masks", "rejected_masks"):
        assert batch[name].shape == (3, 3, 4, 4)
        expected_BS = torch.tensor([[1, 0, 0], [0.2, 0, 1], [0, 0, 0]])
        torch.testing.assert_close(batch[name], expected_BS[..., None, None].expand(3, 3, 4, 4))


def test_draws_depend_on_seed_epoch_and_row_alone():
    collate = collator(seed=3, crop="random", random_flip=True, caption_dropout=0.5)
    data = make_pairs(6, size=(128, 80), n_references=1)
    together = collate([{**data[i], "key": RowKey(i, 2)} for i in range(6)])
    for i in (5, 3, 0):
        for key in (RowKey(i, 2), RowKey(i, 2, counts=False)):
            alone = collate.pair({**data[i], "key": key})
            for name in ("chosen", "rejected", "chosen_masks", "rejected_masks", "prompt", "seed"):
                assert equal(together[name][i], alone[name])

    def draws(collate, row, epoch):
        pair = collate.pair(row_of(noise((160, 100)), key=RowKey(row, epoch)))
        return pair["seed"], pair["chosen"].numpy().tobytes()

    others = [draws(collator(seed=4, crop="random"), 1, 2)]
    others += [draws(collator(seed=3, crop="random"), row, epoch) for row, epoch in [(1, 2), (2, 1), (1, 1), (1, 0)]]
    seeds, images = zip(*others, strict=True)
    assert len({*seeds}) == len({*images}) == len(others)


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_caption_dropout(share):
    collate = collator(16, caption_dropout=share)
    image = noise((16, 16))
    prompts = [collate.pair(row_of(image, key=RowKey(row)))["prompt"] for row in range(1000)]
    assert {*prompts} <= {"a cat", ""}
    # Within four standard deviations
    assert prompts.count("") == pytest.approx(1000 * share, abs=4 * (1000 * share * (1 - share)) ** 0.5)


def test_seeds_are_distinct():
    collate = collator(16)
    image = noise((16, 16))
    seeds = {collate.pair(row_of(image, key=RowKey(row, epoch)))["seed"] for row in range(300) for epoch in range(3)}
    assert len(seeds) == 900
    assert all(torch.Generator().manual_seed(seed) for seed in seeds)


# ---- Images ----


@pytest.mark.parametrize("crop", CROPS)
def test_images_of_the_target_size_pass_untouched(crop):
    chosen, rejected = noise((128, 32)), noise((128, 32), 1)
    mask = noise((128, 32), 2).convert("L")
    flips = set()
    for row in range(8):
        for random_flip in (False, True):
            key, masks = RowKey(row), {"chosen_masks": [mask], "rejected_masks": [None]}
            pair = collator(crop=crop, random_flip=random_flip).pair(row_of(chosen, rejected, key, **masks))
            cells = np.asarray(mask, np.float32).reshape(2, CELL, 8, CELL).mean((1, 3)) / 255
            flip = not np.array_equal(pixels(pair["chosen"]), chosen)
            step = -1 if flip else 1
            assert random_flip or not flip
            assert np.array_equal(pixels(pair["chosen"])[:, ::step], chosen)
            assert np.array_equal(pixels(pair["rejected"])[:, ::step], rejected)
            np.testing.assert_allclose(pair["chosen_masks"][0].numpy()[:, ::step], cells, atol=1e-6)
            assert not pair["rejected_masks"].any()
            flips.add(flip)
    assert flips == {False, True}


def coordinates(size):
    """An image whose red and green are the coordinates of each pixel, as a share of the sides; the same as masks."""
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    channels = [np.round(255 * values).astype(np.uint8) for values in (x, y, np.zeros_like(x))]
    return PIL.Image.fromarray(np.stack(channels, -1)), [PIL.Image.fromarray(values) for values in channels[:2]]


def span(values):
    """Where a line through values at the centres of equal steps begins and ends."""
    slope, offset = np.polyfit((np.arange(len(values)) + 0.5) / len(values), values, 1)
    return offset, offset + slope


def seen(image_CHW):
    """What of an image of coordinates was cut out: left, right (less than left if mirrored), top, bottom."""
    x_HW, y_HW, _ = image_CHW.double().numpy() / 255
    return np.array([*span(x_HW.mean(0)), *span(y_HW.mean(1))])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("axis, sizes", [(1, [(500, 200), (400, 200)]), (0, [(200, 500), (240, 480)])])
def test_pair_and_masks_share_crop_and_flip(axis, sizes, crop, flip):
    """Both images are cut along one axis, to 3:1 or 1:3."""
    (chosen, chosen_masks), (rejected, rejected_masks) = map(coordinates, sizes)
    columns = {"chosen_masks": chosen_masks, "rejected_masks": rejected_masks}
    collate = collator(32, crop=crop, random_flip=flip)
    flips, places = [], []
    for row in range(24):
        pair = collate.pair(row_of(chosen, rejected, RowKey(row), **columns))
        assert pair["chosen"].shape == pair["rejected"].shape == ((3, 16, 48) if axis else (3, 48, 16))
        flips_of_pair, places_of_pair = set(), []
        for name, size in zip(("chosen", "rejected"), sizes, strict=True):
            image_CHW = pair[name][:2].float() / 255
            np.testing.assert_allclose(
                pair[f"{name}_masks"], torch.nn.functional.avg_pool2d(image_CHW, CELL), atol=0.01
            )
            left, right, top, bottom = seen(pair[name])
            flips_of_pair.add(left > right)
            spans = [sorted((left, right)), (top, bottom)]
            np.testing.assert_allclose(spans[1 - axis], [0, 1], atol=0.01)
            low, high = spans[axis]
            if crop == "none":
                np.testing.assert_allclose([low, high], [0, 1], atol=0.01)
            else:
                assert (high - low) * size[axis] == pytest.approx(size[1 - axis] / 3, rel=0.02)
                places_of_pair.append(low / (1 - high + low))
        assert len(flips_of_pair) == 1
        assert np.ptp(places_of_pair or [0]) < 0.05
        flips += flips_of_pair
        places += places_of_pair
    assert 6 <= sum(flips) <= 18 if flip else not any(flips)
    if crop == "center":
        np.testing.assert_allclose(places, 0.5, atol=0.03)
    elif crop == "random":
        assert min(places) < 0.2 and max(places) > 0.8 and -0.03 < min(places) and max(places) < 1.03


@pytest.mark.parametrize("crop", CROPS)
def test_chosen_gives_the_target_size(crop):
    pair = collator(crop=crop).pair(row_of(noise((400, 100)), noise((100, 100))))
    assert pair["chosen"].shape == pair["rejected"].shape == (3, 32, 128)


@pytest.mark.parametrize("size", [(1412, 886), (830, 337), (1244, 232), (29, 285), (499, 501)])
def test_rounding_moves_no_box_beyond_its_image(size):
    for crop in ("center", "random"):
        pair = collator(512, crop=crop).pair(row_of(PIL.Image.new("RGB", size)))
        assert pair["chosen"].shape[1:] == target_size(*size, 512, CELL)


@pytest.mark.parametrize("size", [(100, 64), (64, 64), (300, 310)])
def test_whole_images_keep_their_corners(size):
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    image = PIL.Image.fromarray(colours).resize(size, PIL.Image.Resampling.NEAREST)
    pair = collator().pair(row_of(image))
    for name in ("chosen", "rejected"):
        assert np.array_equal(pixels(pair[name])[:: pair[name].shape[1] - 1, :: pair[name].shape[2] - 1], colours)


def stored(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA"])
def test_modes_become_rgb(mode, encoded):
    rgb = PIL.Image.new("RGB", (64, 64), (255, 0, 0))
    rgb.paste((0, 0, 255), (0, 0, 32, 64))
    image = rgb.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(128)
    expected = image.convert("RGB") if mode in ("L", "1", "LA") else rgb
    value = stored(image) if encoded else image
    pair = collator().pair(row_of(value, value, references=[value]))
    for tensor in (pair["chosen"], pair["rejected"], *pair["references"]):
        assert tensor.dtype == torch.uint8
        assert np.array_equal(pixels(tensor), expected)


def test_images_are_turned_upright():
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 6  # to be shown turned by a quarter, clockwise
    image, mask = noise((64, 256)), random_mask(np.random.default_rng(0), (64, 256))
    upright = np.rot90(np.asarray(image), -1)
    for value in (stored(image, exif=exif), PIL.Image.open(io.BytesIO(stored(image, exif=exif)["bytes"]))):
        masks = [stored(mask, exif=exif)]
        pair = collator(128).pair(row_of(value, value, references=[value], chosen_masks=masks))
        assert np.array_equal(pixels(pair["chosen"]), upright)
        assert np.array_equal(pixels(pair["rejected"]), upright)
        assert pair["references"][0].shape == (3, 48, 192)
        cells = np.rot90(np.asarray(mask, np.float32), -1).reshape(4, CELL, 16, CELL).mean((1, 3)) / 255
        np.testing.assert_allclose(pair["chosen_masks"][0], cells, atol=1e-6)


# ---- Masks ----


@pytest.mark.parametrize(
    "crop, size, box",
    [
        ("none", (64, 64), (0, 0, 64, 64)),
        ("none", (256, 256), (0, 0, 256, 256)),
        ("none", (32, 32), (0, 0, 32, 32)),
        ("none", (384, 192), (0, 0, 384, 192)),
        ("center", (256, 256), (0, 0, 256, 256)),
        ("center", (224, 96), (16, 0, 208, 96)),
        ("center", (96, 224), (0, 16, 96, 208)),
    ],
)
def test_masks_are_averaged_over_the_area_of_each_cell(crop, size, box):
    """Where sides shrink or grow by whole numbers, without any error."""
    masks = [noise(size, seed).convert("L") for seed in range(2)]
    image = noise(size)
    pair = collator(crop=crop).pair(row_of(image, chosen_masks=masks, rejected_masks=[None, masks[0]]))
    rows, columns = (side // CELL for side in pair["chosen"].shape[1:])
    expected_SHW = np.stack(
        [
            np.asarray(mask.crop(box), np.float64).reshape(rows, (box[3] - box[1]) // rows, columns, -1).mean((1, 3))
            / 255
            for mask in masks
        ]
    )
    np.testing.assert_allclose(pair["chosen_masks"], expected_SHW, atol=1e-5)
    np.testing.assert_allclose(pair["rejected_masks"][1], expected_SHW[0], atol=1e-5)
    assert not pair["rejected_masks"][0].any()


def overlaps(n_in, n_out):
    """Share of each of `n_in` equal parts of a line in each of `n_out` ones."""
    edges, starts = np.linspace(0, n_in, n_out + 1), np.arange(n_in)
    lengths = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.clip(lengths, 0, None) * n_out / n_in


@pytest.mark.parametrize("size", [(100, 100), (90, 140), (1000, 700), (37, 53)])
def test_masks_of_any_size(size):
    """Resizing moves an edge by half a pixel at most, of the mask or of the target."""
    mask = random_mask(np.random.default_rng(0), size)
    (cells,) = collator(128).pair(row_of(noise(size), chosen_masks=[mask]))["chosen_masks"].numpy()
    rows, columns = cells.shape
    exact = overlaps(size[1], rows) @ np.asarray(mask, np.float64) @ overlaps(size[0], columns).T / 255
    pixel = max(1 / CELL, rows / size[1], columns / size[0])
    assert np.abs(cells - exact).max() <= pixel + 1e-6
    assert abs(cells.mean() - exact.mean()) < 0.02


# ---- References ----


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (400, 100), (200, 300)])
def test_references_are_sized_as_the_model_does(size):
    collate = collator(crop="random", random_flip=True)
    rule, reference = collate.layout_rule.references, noise(size)
    expected = image_to_tensor(rule.prepare(reference))
    assert expected.shape == (3, *rule.size(*size))
    chosen = noise((64, 64), 1)
    pairs = [collate.pair(row_of(chosen, key=RowKey(row), references=[reference])) for row in range(8)]
    assert all(torch.equal(pair["references"][0], expected) for pair in pairs)
    assert len({pair["chosen"].numpy().tobytes() for pair in pairs}) == 2  # while pairs are mirrored, and not


# ---- References' masks and subjects ----


def test_reference_masks_follow_their_references():
    """A box on a reference that is shrunk and cut to cells: its mean per cell, by hand from the prepared mask."""
    collate = collator()
    large, small = noise((200, 100)), noise((64, 64), 1)
    mask = PIL.Image.new("L", large.size)
    mask.paste(255, (0, 0, 100, 100))
    rows = [
        row_of(
            references=[large, small], reference_masks=[mask, None], reference_subjects=["b", "a"], subjects=["a", "b"]
        ),
        row_of(references=[large, small]),
    ]
    batch = collate(rows)
    assert batch["reference_subjects"].tolist() == [[1, 0], [0, 1]]
    first, second = batch["reference_masks"]
    height, width = batch["references"][0].shape[-2:]
    assert first.shape == (2, height // CELL, width // CELL) and second.shape == (2, 4, 4)
    assert (second == 1).all() and (first[1] == 1).all()
    prepared = np.asarray(collate.layout_rule.references.prepare(mask), np.float32) / 255
    expected = prepared.reshape(height // CELL, CELL, width // CELL, CELL).mean(axis=(1, 3))
    np.testing.assert_allclose(first[0], expected, atol=1e-6)
    assert first[0, :, 0].min() > 0.99 and first[0, :, -1].max() < 0.01


def test_rows_without_references_have_no_subjects_of_them():
    batch = collator()([row_of(), row_of(references=None)])
    assert batch["reference_masks"] == [] and batch["reference_subjects"].shape == (2, 0)


# ---- Detail ----


@pytest.mark.parametrize("crop", CROPS)
def test_detail_is_cut_and_mirrored_with_its_image(crop):
    """One cell in 64 that is bright, at the place where the image is bright: both end up in the same cell."""
    collate = collator(64, crop=crop, random_flip=True, seed=1)
    spot = np.zeros((128, 256), np.uint8)
    spot[32:48, 112:128] = 255
    image, detail = PIL.Image.fromarray(np.stack([spot] * 3, -1)), PIL.Image.fromarray(spot[::16, ::16])
    flips = set()
    for key in range(8):
        row = row_of(image, key=RowKey(key), chosen_detail=detail, rejected_detail=detail)
        row["chosen_masks"] = row["rejected_masks"] = [PIL.Image.fromarray(spot)]
        pair = collate.pair(row)
        torch.testing.assert_close(pair["chosen_detail"], pair["chosen_masks"][0], atol=1e-5, rtol=0)
        assert torch.equal(pair["chosen_detail"], pair["rejected_detail"])
        flips.add(tuple(pair["chosen_detail"].flatten().tolist()))
    assert len(flips) > 1
    batch = collate([row, row])
    assert batch["chosen_detail"].shape == batch["chosen_masks"].shape[:1] + batch["chosen_masks"].shape[2:]
