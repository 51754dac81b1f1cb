# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.complexity import measure_alone
from trl_focus.focus.complexity import complexity, gaussian_windows, local_entropy, luminance, soft_bins


data = pytest.importorskip("skimage.data")
PHOTOGRAPHS = ["astronaut", "chelsea", "coffee"]


def photograph(name):
    pixels_HWC = getattr(data, name)()
    height, width = (side // 16 * 16 for side in pixels_HWC.shape[:2])
    return torch.from_numpy(pixels_HWC[:height, :width].copy()).permute(2, 0, 1)[None]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def grey(luminance_HW):
    return luminance_HW.expand(1, 3, -1, -1)


def on_every_pixel(pixels, cell_size, sigma, bins=16):
    """`complexity` with a step of 1."""
    rows, columns = (gaussian_windows(size, 1, sigma) for size in pixels.shape[2:])
    return F.avg_pool2d(local_entropy(soft_bins(luminance(pixels), bins), rows, columns), cell_size)


def directly(pixels_HWC, cell_size, step, sigma, bins):
    """`complexity` of a uint8 image in fp64, window by window."""
    height, width, _ = pixels_HWC.shape
    share = np.zeros((height, width, bins))
    for y in range(height):
        for x in range(width):
            position = pixels_HWC[y, x] @ np.array([0.299, 0.587, 0.114]) / 255 * (bins - 1)
            below = min(int(position), bins - 2)
            share[y, x, below], share[y, x, below + 1] = below + 1 - position, position - below

    def entropy(p):
        return -sum(x * np.log(x) for x in p if x > 0)

    single = np.array([[entropy(share[y, x]) for x in range(width)] for y in range(height)])
    ys, xs = np.mgrid[:height, :width]
    cells = np.zeros((height // cell_size, width // cell_size))
    for top in range(0, height, step):
        for left in range(0, width, step):
            centre_y, centre_x = top + (step - 1) / 2, left + (step - 1) / 2
            window = np.exp(-((ys - centre_y) ** 2 + (xs - centre_x) ** 2) / (2 * sigma**2))
            window /= window.sum()
            least = (window * single).sum()
            value = (entropy(np.einsum("hw,hwk->k", window, share)) - least) / (np.log(bins) - least)
            cells[top // cell_size, left // cell_size] += value * (step / cell_size) ** 2
    return cells


@pytest.mark.parametrize(
    "cell_size,step,sigma,bins", [(8, 2, 4.0, 16), (3, 1, 4.0, 16), (4, 4, 9.0, 16), (12, 1, 1.5, 5), (8, 1, 3.0, 3)]
)
def test_agrees_with_a_direct_computation(cell_size, step, sigma, bins):
    pixels_HWC = data.astronaut()[100:124, 200:248]  # an eye
    actual = complexity(torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)[None], cell_size, sigma, bins)
    np.testing.assert_allclose(actual[0], directly(pixels_HWC, cell_size, step, sigma, bins), atol=1e-5)


@pytest.mark.parametrize("bins", [4, 16])
def test_hard_bins_in_a_box_agree_with_scikit_image(bins):
    from skimage.filters import rank

    radius = 4
    image = luminance(photograph("chelsea"))
    hard_HW = (image[0] * bins).long().clamp(max=bins - 1)
    rows, columns = (
        F.normalize((torch.arange(n)[:, None] - torch.arange(n)).abs().le(radius).float(), p=1, dim=1)
        for n in hard_HW.shape
    )
    actual = local_entropy(((hard_HW == k).float()[None] for k in range(bins)), rows, columns)[0]
    expected = rank.entropy(hard_HW.numpy().astype(np.uint8), np.ones((2 * radius + 1,) * 2)) / np.log2(bins)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_luminance_is_that_of_pil():
    pixels = photograph("coffee")
    expected = np.asarray(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).convert("L")) / 255
    np.testing.assert_allclose(luminance(pixels)[0], expected, atol=0.51 / 255)


@pytest.mark.parametrize("white", [torch.tensor(255, dtype=torch.uint8), torch.tensor(1.0)])
def test_luminance_reaches_0_and_1_and_no_further(white):
    assert luminance(white.expand(1, 3, 5, 64)).unique().tolist() == [1]
    assert luminance((white * 0).expand(1, 3, 5, 64)).unique().tolist() == [0]


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-6), (torch.float16, 0.01)])
def test_floats_agree_with_uint8(dtype, tolerance):
    pixels = photograph("astronaut")
    actual = complexity((pixels.double() / 255).to(dtype), 16)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, complexity(pixels, 16), atol=tolerance, rtol=0)


def test_soft_bins_sum_to_1_and_keep_the_mean():
    values = noise(1, 32, 32)
    shares = torch.stack(list(soft_bins(values, 16)))
    torch.testing.assert_close(shares.sum(0), torch.ones_like(values))
    torch.testing.assert_close((shares * torch.linspace(0, 1, 16)[:, None, None, None]).sum(0), values)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 4.0, 1000.0])
def test_windows_sum_to_1_at_the_border_too(sigma):
    windows = gaussian_windows(24, 2, sigma)
    torch.testing.assert_close(windows.sum(1), torch.ones(12))
    torch.testing.assert_close(windows.flip(0, 1), windows)


@pytest.mark.parametrize("sigma", [1.0, 4.0, 30.0])
def test_products_of_windows_are_not_subnormal(sigma):
    windows = gaussian_windows(1024, 2, sigma)
    assert windows[windows > 0].min() ** 2 > torch.finfo(windows.dtype).tiny


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("cell_size,sigma", [(8, 4.0), (16, 4.0), (16, 8.0), (16, 16.0)])
def test_steps_agree_with_a_window_on_every_pixel(name, cell_size, sigma):
    pixels = photograph(name)
    difference = (complexity(pixels, cell_size, sigma) - on_every_pixel(pixels, cell_size, sigma)).abs().max()
    assert difference < (0.004 if sigma == 4 else 0.006)


@pytest.mark.parametrize("bins", [3, 16, 32])
def test_flat_images_are_0_at_every_level(bins):
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 32)
    assert complexity(levels, 8, bins=bins).max() < 1e-6
    colours = noise(500, 3, 1, 1).expand(-1, -1, 16, 16)
    assert complexity(colours, 8, bins=bins).max() < 1e-6


def test_uniform_noise_is_near_1_up_to_the_border():
    assert complexity(grey(noise(256, 256)), 8).min() > 0.95
    assert complexity((grey(noise(256, 256)) * 256).byte(), 16).min() > 0.95
    # Independent channels: luminance, their weighted mean, no longer reaches the extremes
    assert complexity(noise(1, 3, 256, 256), 16).min() > 0.8


@pytest.mark.parametrize("dark,light", [(0.0, 1.0), (0.2, 0.8), (1.5 / 15, 12.5 / 15)])
def test_an_edge_is_in_between_and_local(dark, light):
    edge = torch.full((128, 128), dark)
    edge[:, 64:] = light
    across = complexity(grey(edge), 8)[0]
    torch.testing.assert_close(across, across[:1].expand_as(across))  # the same all along the edge
    assert 0.1 < across[0].max() < 1 / 3
    assert across[0].argmax() in (7, 8)
    assert across[0, [7, 8]].min() > 10 * across[0, [6, 9]].max()
    assert across[0, [*range(5), *range(11, 16)]].max() < 1e-3  # 4 sigma away


def test_half_the_contrast_is_about_a_quarter_less_of_noise():
    pixels = grey(noise(256, 256))
    whole, half, quarter = (complexity(pixels * contrast, 16).mean() for contrast in (1, 1 / 2, 1 / 4))
    assert whole - half == pytest.approx(0.27, abs=0.02)
    assert half - quarter == pytest.approx(0.27, abs=0.02)


# Rows and columns in pixels: of rich detail, and smooth
REGIONS = {
    "astronaut": [("face", (72, 168), (192, 256)), ("backdrop", (24, 88), (304, 368))],
    "chelsea": [("fur", (24, 88), (216, 280)), ("blurred background", (32, 96), (400, 448))],
    "coffee": [("spoon", (240, 312), (336, 392)), ("saucer", (312, 368), (280, 336))],
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_detail_is_above_smooth_background(name):
    cells = complexity(photograph(name), 8)[0]
    detail, smooth = (
        cells[top // 8 : bottom // 8, left // 8 : right // 8] for _, (top, bottom), (left, right) in REGIONS[name]
    )
    assert detail.mean() > 3 * smooth.mean()
    assert detail.quantile(0.1) > smooth.quantile(0.9)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_flips_and_transposition_go_through(name):
    pixels = photograph(name)
    for change in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        torch.testing.assert_close(complexity(change(pixels), 16), change(complexity(pixels, 16)), atol=1e-5, rtol=0)


def test_images_of_a_batch_are_independent():
    pixels = torch.stack([photograph(name)[0, :, :256, :256] for name in PHOTOGRAPHS])
    alone = torch.cat([complexity(image[None], 16) for image in pixels])
    torch.testing.assert_close(complexity(pixels, 16), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_brightness_makes_no_jumps(name):
    pixels = photograph(name) / 255 * 0.9
    for shift, change in ((1e-5, 0.0005), (1e-4, 0.003), (1 / 255, 0.02)):
        assert (complexity(pixels + shift, 8) - complexity(pixels, 8)).abs().max() < change


def test_neighbouring_grey_levels_count_little_everywhere():
    # Hard bins would give 1/4 where the two fall into different bins, and 0 elsewhere
    checkers = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    pixels = (checkers + torch.arange(255)[:, None, None, None]).byte().expand(-1, 3, -1, -1)
    assert complexity(pixels, 8).max() < 0.01


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_is_finite_and_in_range(draw):
    cell_size, rows, columns, batch = (draw.draw(st.integers(1, most)) for most in (9, 5, 5, 2))
    shape = (batch, 3, rows * cell_size, columns * cell_size)
    generator = torch.Generator().manual_seed(draw.draw(st.integers(0, 2**31)))
    levels = torch.tensor(draw.draw(st.lists(st.integers(0, 255), min_size=1, max_size=20)), dtype=torch.uint8)
    pixels = levels[torch.randint(len(levels), shape, generator=generator)]
    if draw.draw(st.booleans()):
        pixels = pixels / 255
    sigma, bins = draw.draw(st.floats(0.05, 100)), draw.draw(st.integers(3, 40))
    actual = complexity(pixels, cell_size, sigma, bins)
    assert actual.shape == (batch, rows, columns)
    assert ((actual >= 0) & (actual <= 1)).all()  # refuses NaN too


def test_takes_no_gradient_and_leaves_its_input():
    pixels = noise(1, 3, 16, 16).requires_grad_()
    before = pixels.detach().clone()
    assert not complexity(pixels, 8).requires_grad
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(
    "pixels,kwargs,message",
    [
        (torch.zeros(3, 16, 16), {}, r"\(B, 3, H, W\)"),
        (torch.zeros(1, 1, 16, 16), {}, r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.int64), {}, "int64"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.bool), {}, "bool"),
        (torch.full((1, 3, 16, 16), 255.0), {}, r"\[0, 1\]"),
        (torch.full((1, 3, 16, 16), -1.0), {}, r"\[0, 1\]"),
        (torch.full((1, 3, 16, 16), float("nan")), {}, r"\[0, 1\]"),
        (torch.zeros(1, 3, 16, 20), {}, "16x20.*cells of 8"),
        (torch.zeros(1, 3, 16, 16), {"cell_size": 0}, "cell_size=0"),
        (torch.zeros(1, 3, 16, 16), {"window_sigma": 0.0}, "window_sigma=0.0"),
        (torch.zeros(1, 3, 16, 16), {"bins": 2}, "bins=2"),
    ],
)
def test_bad_input_is_refused(pixels, kwargs, message):
    with pytest.raises(ValueError, match=message):
        complexity(pixels, **{"cell_size": 8, **kwargs})


def test_time_and_memory():
    seconds, megabytes = measure_alone(1024)
    assert seconds < 2
    assert megabytes < 300
