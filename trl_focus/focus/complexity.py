# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
How much detail each cell of an image holds: the Detail-Preserving Complexity Estimator of FocusDPO
(https://huggingface.co/papers/2509.01181). The paper's figure names pixel values, a Gaussian window and local entropy;
the rest is decided here.

Tensor names carry their shape: B images, C channels, H W pixels or the token grid, U V windows down and across.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F


# Weights of red, green and blue in luminance by Rec. 601, the one of JPEG and of PIL's mode "L"
REC_601 = (0.299, 0.587, 0.114)


def luminance(pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """
    Luminance (luma) by Rec. 601.

    Args:
        pixels_BCHW (`torch.Tensor` of shape `(B, 3, H, W)`):
            RGB, `uint8` or floating point in [0, 1].

    Returns:
        `torch.Tensor` of shape `(B, H, W)`, fp32 in [0, 1].

    Raises:
        ValueError: If the shape, the dtype or the range is another.
    """
    if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != 3:
        raise ValueError(f"Pixels have shape {tuple(pixels_BCHW.shape)}, expected (B, 3, H, W).")
    if pixels_BCHW.dtype == torch.uint8:
        white = 255
    elif pixels_BCHW.is_floating_point():
        white = 1
        if not ((pixels_BCHW >= 0) & (pixels_BCHW <= 1)).all():  # refuses NaN too
            raise ValueError("Floating-point pixels must lie in [0, 1].")
    else:
        raise ValueError(f"Pixels are {pixels_BCHW.dtype}, expected uint8 or floating point.")
    luminance_BHW = sum(
        weight * channel for weight, channel in zip(REC_601, pixels_BCHW.float().unbind(1), strict=True)
    )
    return luminance_BHW / white


def soft_bins(luminance_BHW: torch.Tensor, bins: int) -> Iterator[torch.Tensor]:
    """
    Share of each pixel in each bin of the histogram: a pixel between two bin centres belongs to both, linearly, so that
    entropy does not jump where luminance crosses from one bin to the next. Centres run from 0 to 1.

    Yields:
        `torch.Tensor` of shape `(B, H, W)` in [0, 1], one per bin; a pixel's shares sum to 1.
    """
    position_BHW = luminance_BHW * (bins - 1)
    for centre in range(bins):
        yield (position_BHW - centre).abs_().neg_().add_(1).clamp_(min=0)


def gaussian_windows(size: int, step: int, sigma: float, device: torch.device | str | None = None) -> torch.Tensor:
    """
    Gaussian windows along one axis, centred on every run of `step` pixels. Each sums to 1, those cut off by the border
    too. Weights below 1e-12, far out, are 0.

    Returns:
        `torch.Tensor` of shape `(size // step, size)`: the weight of each pixel in each window.
    """
    centre_U1 = (torch.arange(size // step, device=device)[:, None] + 0.5) * step
    pixel_H = torch.arange(size, device=device) + 0.5
    windows_UH = torch.softmax(-((pixel_H - centre_U1) ** 2) / (2 * sigma**2), dim=1)
    # Products of the tails would be subnormal numbers, with which processors are several times slower
    return F.threshold(windows_UH, 1e-12, 0)


def local_entropy(
    memberships: Iterable[torch.Tensor], rows_UH: torch.Tensor, columns_VW: torch.Tensor
) -> torch.Tensor:
    """
    Shannon entropy of the histogram inside each window, scaled to [0, 1].

    Soft bins have an entropy even where the image is flat: a pixel between two bins is in both. So with `H` the
    entropy of the window's histogram and `H_0` the window's mean of the entropies of single pixels, this is
    `(H - H_0) / (log bins - H_0)`. Entropy is concave, hence `H >= H_0`, with equality where all pixels are alike:
    every flat window gives 0, an even histogram gives 1. With hard bins `H_0` is 0 and this is `H / log bins`.

    Args:
        memberships (`Iterable[torch.Tensor]` of shape `(B, H, W)`):
            One per bin, at least three: the share of each pixel in it, in [0, 1]. A pixel has shares in two bins at
            most, and they sum to 1. Consumed one by one, so that a single bin is in memory.
        rows_UH (`torch.Tensor` of shape `(U, H)`), columns_VW (`torch.Tensor` of shape `(V, W)`):
            Weights of the pixels in each window along the two axes. Each window sums to 1.

    Returns:
        `torch.Tensor` of shape `(B, U, V)` in [0, 1].
    """
    entropy_BUV = single_BHW = 0
    for bins, membership_BHW in enumerate(memberships, start=1):  # noqa: B007
        entropy_BUV += torch.special.entr(rows_UH @ membership_BHW @ columns_VW.T)
        single_BHW += torch.special.entr(membership_BHW)
    single_BUV = rows_UH @ single_BHW @ columns_VW.T
    most = torch.tensor(float(bins)).log()
    return ((entropy_BUV - single_BUV) / (most - single_BUV)).clamp(0, 1)  # rounding


@torch.no_grad()
def complexity(pixels_BCHW: torch.Tensor, cell_size: int, window_sigma: float = 4.0, bins: int = 16) -> torch.Tensor:
    """
    Information density of each cell of the token grid: Shannon entropy of the Gaussian-weighted local histogram of
    luminance, scaled to [0, 1] and averaged over the cell.

    A flat image is 0 at every grey level; with the default bins two grey levels are at most 1/3, and uniform noise
    0.98. Entropy counts the grey levels in a window, whatever their arrangement, so it grows with contrast: half the
    contrast takes about a quarter off the complexity of noise.

    Windows are centred on every `step` pixels, `step` being the largest divisor of the cell of at most half a
    `window_sigma`: on photographs within 0.006 of a window on every pixel (0.003 for the default).

    Args:
        pixels_BCHW (`torch.Tensor` of shape `(B, 3, H, W)`):
            RGB, `uint8` or floating point in [0, 1].
        cell_size (`int`):
            Side of a cell in pixels: 16 where a token is 2x2 latents of an autoencoder with factor 8.
        window_sigma (`float`, *optional*, defaults to `4.0`):
            Standard deviation of the window in pixels. The default spans about a cell of 16.
        bins (`int`, *optional*, defaults to `16`):
            Bins of the histogram, at least 3: soft binning spreads over two. Keep them well below the effective number
            of pixels in a window, `4 pi window_sigma^2` (200 for the default): the entropy of noise is underestimated
            by up to half their ratio, in nats.

    Returns:
        `torch.Tensor` of shape `(B, H / cell_size, W / cell_size)`, fp32 in [0, 1], without gradient.

    Raises:
        ValueError: If the shape, the dtype or the range of the pixels is another, if height or width is no multiple of
            `cell_size`, or if a setting is out of range.
    """
    if cell_size < 1 or window_sigma <= 0 or bins < 3:
        raise ValueError(
            f"Got cell_size={cell_size}, window_sigma={window_sigma} and bins={bins}: expected a cell of at least 1 "
            "pixel, a window_sigma above 0 and at least 3 bins."
        )
    luminance_BHW = luminance(pixels_BCHW)
    height, width = luminance_BHW.shape[1:]
    if height % cell_size or width % cell_size:
        raise ValueError(f"An image of {height}x{width} pixels does not divide into cells of {cell_size}.")
    step = max(s for s in range(1, cell_size + 1) if cell_size % s == 0 and (s == 1 or s <= window_sigma / 2))
    rows_UH, columns_VW = (gaussian_windows(size, step, window_sigma, pixels_BCHW.device) for size in (height, width))
    entropy_BUV = local_entropy(soft_bins(luminance_BHW, bins), rows_UH, columns_VW)
    return F.avg_pool2d(entropy_BUV, cell_size // step)
