# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Images out of datasets, which anybody may have written: what is opened, and how much of it, is limited here and nowhere else.
"""

import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from datasets.utils.file_utils import xopen


MASK_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
IMAGE_MODES = (*MASK_MODES, "PA", "RGBX", "CMYK", "YCbCr", "HSV")  # 8 bits: RGB conversion clips the deeper ones

MAX_PIXELS = 8192**2
MAX_BYTES = 8 * MAX_PIXELS  # as many pixels without compression; a few bytes in an archive may unpack to any number

# Pillow reads many more, some of them through other programs: EPS through Ghostscript
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

HUB_FILES = "hf://datasets/"


def decode_image(value: PIL.Image.Image | Mapping[str, Any]) -> PIL.Image.Image:
    """
    Decodes an image and turns it upright by its EXIF orientation.

    Args:
        value (`PIL.Image.Image` or `Mapping`):
            An image, or `{"bytes", "path"}` as [`datasets.Image`] stores it.

    Returns:
        `PIL.Image.Image`: The loaded image in its own mode.

    Raises:
        TypeError: If the value is neither.
        OSError: If its file can't be fetched.
        ValueError: If there is no such file, it can't be decoded, is animated, or has more than `MAX_PIXELS` pixels or `MAX_BYTES` bytes.
    """
    if not isinstance(value, PIL.Image.Image | Mapping):
        raise TypeError(
            f"expected an image or a dictionary with 'bytes' and 'path', got {type(value).__name__}. Paths and bytes "
            "become images with `dataset.cast_column` and `datasets.Image()`"
        )
    content = _content(value) if isinstance(value, Mapping) else None  # a Hub that does not answer is no damaged image
    try:
        image = value if content is None else PIL.Image.open(content, formats=_formats())
        _check_extent(image)
        image.load()
        if PIL.Image.ExifTags.Base.Orientation in image.getexif():
            image = PIL.ImageOps.exif_transpose(image)
    except (ValueError, MemoryError):
        raise
    except PIL.UnidentifiedImageError as error:
        path = value.get("path") if isinstance(value, Mapping) else None
        raise ValueError(f"{path or 'the content'} is not an image file of a format that is read here") from error
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {MAX_PIXELS} pixels, the most that are read: save it smaller") from error
    except Exception as error:  # a damaged file can raise anything from inside its format's reader
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return image


def container_of(path: str) -> str:
    """
    The file that is opened for an image's path: itself, or the archive that it lies in.

    Raises:
        ValueError: If it is a URL of anything but a dataset on the Hub.
    """
    *inner, container = path.split("::")  # as fsspec chains them: zip://inside.png::outside.zip
    if any(not part.startswith("zip://") for part in inner) or (
        "://" in container and not container.startswith(HUB_FILES)
    ):
        raise ValueError(f"{path} is a URL, and images are not fetched from those: store the image itself")
    return container


def _content(value: Mapping[str, Any]) -> BytesIO:
    content, path = value.get("bytes"), value.get("path")
    if content is None and path is None:
        raise ValueError("it has neither bytes nor a path")
    if content is not None:
        file = BytesIO(content)
    else:
        container = container_of(path)
        if "://" not in container and not Path(container).is_file():
            raise ValueError(f"{path} is not a file")
        try:
            with xopen(path, "rb") as opened:
                file = BytesIO(opened.read(MAX_BYTES + 1))
        except (FileNotFoundError, KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
            raise ValueError(f"{path} can't be read: {type(error).__name__}: {error}") from error
    if len(file.getbuffer()) > MAX_BYTES:
        raise ValueError(f"its file has more than {MAX_BYTES} bytes, the most that are read: save it smaller")
    if not file.getbuffer():
        raise ValueError(f"{path or 'it'} is empty (0 bytes)")
    return file


def _formats() -> list[str]:
    PIL.Image.init()
    return [name for name in FORMATS if name in PIL.Image.OPEN]


def _check_extent(image: PIL.Image.Image):
    """Before the pixels are decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"it has {image.width}x{image.height} pixels, and at most {MAX_PIXELS} are read: save it smaller"
        )
    # An MPO file is what phones write as JPEG: a photograph, and what they store beside it
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        raise ValueError(f"it has {frames} frames or pages, and which one is meant is not said: save that one alone")


def is_transparent(image: PIL.Image.Image) -> bool:
    """Whether any pixel of an image lets through what is behind it."""
    return image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255


def mask_to_array(value: PIL.Image.Image | Mapping[str, Any] | None) -> np.ndarray | None:
    """
    Reads a mask as the luminance of its image.

    Args:
        value (`PIL.Image.Image` or `Mapping`, *optional*):
            Anything that [`decode_image`] takes, of mode 1, L, LA, P, RGB or RGBA.

    Returns:
        `np.ndarray` of shape `(H, W)`, float32 in [0, 1], or `None` for `None`.

    Raises:
        TypeError: If the value is not an image.
        ValueError: If it can't be decoded, has another mode, or holds 0 and 1 in place of 0 and 255.
    """
    if value is None:
        return None
    image = decode_image(value)
    if image.mode not in MASK_MODES:
        raise ValueError(f"it has mode {image.mode!r}, and masks have one of {', '.join(MASK_MODES)}")
    mask = np.asarray(image.convert("L"))
    if mask.max(initial=0) == 1:
        raise ValueError(
            "its largest value is 1 of 255, so all of it would count as nearly absent. Multiply it by 255, or save it "
            "with mode '1'"
        )
    return mask.astype(np.float32) / 255


def decode_mask(
    value: PIL.Image.Image | Mapping[str, Any] | None, size: tuple[int, int] | None = None
) -> np.ndarray | None:
    """
    Reads a mask as [`mask_to_array`] does, and checks that it covers its image.

    Args:
        value (`PIL.Image.Image` or `Mapping`, *optional*):
            The mask; `None` for an absent subject.
        size (`tuple[int, int]`, *optional*):
            The image's (width, height) in pixels.

    Returns:
        `np.ndarray` of shape `(H, W)`, float32 in [0, 1], or `None` for `None`.

    Raises:
        TypeError: If the value is not an image.
        ValueError: If it can't be read as a mask, or its size is not the image's.
    """
    mask = mask_to_array(value)
    if mask is not None and size is not None and mask.shape != size[::-1]:
        raise ValueError(
            "its size is {}x{} pixels and its image's {}x{}. Masks lie on their image pixel by pixel: save it at the "
            "image's size".format(*mask.shape[::-1], *size)
        )
    return mask
