# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
Photographs the page of `trl-focus inspect` for docs/inspect.md, in a headless Chromium. The pairs are made of photographs that
ship with scikit-image, and the model has random weights.

    pip install -e ".[examples,inspect]" selenium
    python -m examples.inspect_page
"""

import io
import shutil
from pathlib import Path

import PIL.Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from trl_focus.families import family_class
from trl_focus.inspect.maps import Matcher
from trl_focus.inspect.page import View, launch

from .photographs.pipeline import ENCODE_PROMPT_KWARGS, tiny_flux2_klein
from .photographs.scenes import make_pairs


IMAGE = Path("docs/images/inspect.png")
WIDTH, HEIGHT = 1280, 1560  # pixels


def matcher() -> Matcher:
    pipeline = tiny_flux2_klein(hidden_size=64)
    return Matcher(family_class([type(pipeline).__name__])(pipeline, ENCODE_PROMPT_KWARGS), resolution=256)


def main():
    pairs = make_pairs(8, size=(256, 320), seed=3, reference_size=(192, 192))
    address = launch(View(pairs, "photographs", matcher()), wait=False)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    wait = WebDriverWait(driver, 60)

    def shows(text: str):
        wait.until(lambda driver: text in driver.find_element("id", "trl-text").text)
        wait.until(lambda driver: not driver.find_elements("css selector", ".generating, .pending"))

    driver.get(address)
    wait.until(lambda driver: driver.find_elements("css selector", "#trl-maps img"))
    for number in range(1, 3):
        driver.find_element("id", "trl-next").click()
        shows(f"row {number},")
    driver.find_element("id", "trl-flip").click()
    shows("flipped")
    photograph = PIL.Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    photograph.quantize(256).save(IMAGE, optimize=True)
    driver.quit()


if __name__ == "__main__":
    main()
