# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Images of datasets: what is opened, what is converted, and what is refused."""

import io
import socket
import subprocess
import zipfile

import numpy as np
import PIL.Image
import pytest

from tests.fixtures.broken import EPS, NOISE, animated, bomb, content, encoded, picture
from trl_focus.data import decode_image, inspect_row
from trl_focus.data.images import FORMATS, MAX_PIXELS, container_of, is_transparent


@pytest.mark.parametrize(
    "format", [name for name in FORMATS if name in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")]
)
def test_formats(format):
    image = decode_image(content(encoded(picture(), format)))
    np.testing.assert_allclose(np.array(image.convert("RGB"))[0, 0], (255, 0, 0), atol=2)


def test_what_an_archive_unpacks_to_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_focus.data.images.MAX_BYTES", 10**5)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", encoded(picture()))
        archive.writestr("bomb.png", encoded(picture()) + bytes(10**7))
    assert (tmp_path / "a.zip").stat().st_size < 10**5
    decode_image({"bytes": None, "path": f"zip://good.png::{tmp_path}/a.zip"})
    with pytest.raises(ValueError, match="its file has more than 100000 bytes"):
        decode_image({"bytes": None, "path": f"zip://bomb.png::{tmp_path}/a.zip"})
    with pytest.raises(ValueError, match="its file has more than 100000 bytes"):
        decode_image(content(encoded(picture()) + bytes(10**7)))


def test_no_other_program_is_started(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("started a program"))
    with pytest.raises(ValueError, match="not an image file of a format that is read here"):
        decode_image(content(EPS))


@pytest.mark.parametrize("opened", [False, True])
def test_too_many_pixels_are_refused_before_they_are_decoded(opened, monkeypatch):
    monkeypatch.setattr("trl_focus.data.images.MAX_PIXELS", 100)
    value = content(encoded(NOISE))
    if opened:
        value = PIL.Image.open(io.BytesIO(value["bytes"]))
    monkeypatch.setattr(PIL.Image.Image, "load", lambda image: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="it has 64x64 pixels, and at most 100 are read"):
        decode_image(value)


def test_bomb():
    with pytest.raises(ValueError, match=f"more than {MAX_PIXELS} pixels"):
        decode_image(content(bomb()))


def test_one_frame_of_a_format_that_may_have_more():
    for format in ("GIF", "TIFF", "WEBP", "PNG"):
        assert decode_image(content(encoded(picture(), format, save_all=True))).size == (32, 24)


def test_opened_animation():
    with pytest.raises(ValueError, match="3 frames"):
        decode_image(PIL.Image.open(io.BytesIO(animated("GIF"))))


def test_phones_photographs():
    value = content(encoded(picture(), "MPO", save_all=True, append_images=[picture("blue")]))
    red, _, blue = decode_image(value).convert("RGB").getpixel((0, 0))
    assert red > 200 > 50 > blue


def test_what_conversion_makes_of_cmyk_and_16_bits():
    row = {"prompt": "a", "rejected": picture("blue")}
    cmyk = content(encoded(picture((0, 255, 255, 0), mode="CMYK"), "JPEG"))
    assert inspect_row({**row, "chosen": cmyk}).problems == []
    np.testing.assert_allclose(decode_image(cmyk).convert("RGB").getpixel((0, 0)), (255, 0, 0), atol=3)
    (problem,) = inspect_row({**row, "chosen": picture(40000, mode="I;16")}).problems
    assert "'I;16'" in problem and "8 bits a channel" in problem


@pytest.mark.parametrize(
    "image, transparent",
    [
        (picture(), False),
        (picture((1, 2, 3, 255), mode="RGBA"), False),
        (picture((1, 2, 3, 254), mode="RGBA"), True),
        (picture((9, 0), mode="LA"), True),
        (picture((9, 255), mode="LA"), False),
    ],
)
def test_transparency(image, transparent):
    assert is_transparent(image) is transparent
    stored = decode_image(content(encoded(image)))
    assert is_transparent(stored) is transparent
    row = {"prompt": "a", "chosen": picture("green"), "rejected": picture("blue")}
    assert (
        any("transparent" in problem for problem in inspect_row({**row, "references": [stored]}).problems)
        is transparent
    )


def test_masks_may_be_transparent():
    row = {"prompt": "a", "chosen": picture(), "rejected": picture("blue")}
    mask = picture((255, 255, 255, 0), mode="RGBA")
    assert inspect_row({**row, "chosen_masks": [mask]}).problems == []


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:9/a.png",
        "https://example.com/a.png",
        "s3://bucket/a.png",
        "file:///etc/passwd",
        "zip://a.png::https://example.com/a.zip",
        "simplecache::zip://a.png::/a.zip",
        "hf://someone/model/a.png",
    ],
)
def test_urls_are_not_fetched(path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("connected"))
    with pytest.raises(ValueError, match="is a URL, and images are not fetched from those"):
        decode_image({"bytes": None, "path": path})


def test_containers():
    assert container_of("/a/b.png") == "/a/b.png"
    assert container_of("zip://b.png::/a.zip") == "/a.zip"
    assert container_of("hf://datasets/user/pairs@main/b.png") == "hf://datasets/user/pairs@main/b.png"


def test_path_beside_bytes_is_not_read():
    value = {"bytes": encoded(picture()), "path": "/etc/passwd"}
    assert decode_image(value).size == (32, 24)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match="is not a file"):
            decode_image({"bytes": None, "path": str(path)})


def test_a_hub_that_does_not_answer_is_no_damaged_image(monkeypatch):
    def silent(*args):
        raise ConnectionError("no answer")

    monkeypatch.setattr("trl_focus.data.images.xopen", silent)
    with pytest.raises(ConnectionError, match="no answer"):
        decode_image({"bytes": None, "path": "hf://datasets/user/pairs@main/a.png"})


def test_a_file_missing_or_damaged_in_its_archive(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", b"x" * 1000)
    with pytest.raises(ValueError, match="b.png.* can't be read"):
        decode_image({"bytes": None, "path": f"zip://b.png::{archive}"})
    stored = bytearray(archive.read_bytes())
    stored[40] ^= 255  # in the compressed data
    archive.write_bytes(stored)
    with pytest.raises(ValueError, match="a.png.* can't be read"):
        decode_image({"bytes": None, "path": f"zip://a.png::{archive}"})
