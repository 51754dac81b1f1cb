# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The page in a real browser: opened, clicked, photographed."""

import io
import json
import shutil
import socket
from urllib.parse import urlsplit

import numpy as np
import PIL.Image
import pytest

from tests.fixtures.broken import content, mask, pair, picture, table
from trl_focus.data import load_preferences
from trl_focus.errors import InputError
from trl_focus.inspect.page import View, launch


pytest.importorskip("gradio", reason='the page needs gradio: pip install "trl-focus[inspect]"')
webdriver = pytest.importorskip("selenium.webdriver", reason="a browser is driven by selenium: pip install selenium")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium or no chromedriver: apt-get install chromium chromium-driver"
)

MASKED = {"chosen_masks": [mask()], "rejected_masks": [mask()], "subjects": ["<b>cat</b>"]}


@pytest.fixture(scope="module")
def pairs():
    return table(
        pair(prompt="a red <i>cat</i>", references=[picture("green")], **MASKED),
        pair(prompt="a tie", rejected=picture(), **MASKED),
        pair(prompt="without masks"),
        pair(prompt="not decoded", chosen=content(b"no image"), **MASKED),
    )


class Page:
    """A browser with the page open."""

    def __init__(self, driver, view, address):
        self.driver, self.view, self.address = driver, view, address
        driver.get(address)
        self.wait("#trl-maps img")
        self.says("row 0, 1 of 4")

    def until(self, condition):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60, 0.1, [StaleElementReferenceException]).until(condition)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def wait(self, selector):
        return self.until(lambda driver: driver.find_elements("css selector", selector))

    def says(self, text, where="#trl-text"):
        self.until(lambda driver: text in self.find(where).text)

    def click(self, selector):
        self.until(lambda driver: self.find(selector).is_enabled())
        self.find(selector).click()

    def colour(self, selector):
        """Colour of the middle of the picture that a component shows."""
        image = self.find(f"{selector} img")
        self.until(lambda driver: image.get_property("complete") and image.get_property("naturalWidth"))
        shown = PIL.Image.open(io.BytesIO(image.screenshot_as_png)).convert("RGB")
        return np.array(shown.getpixel((shown.width // 2, shown.height // 2)))

    def source(self, selector):
        return self.find(f"{selector} img").get_attribute("src")


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1400"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server(pairs):
    """The view, the page's address, and what its server looked for elsewhere."""
    import gradio

    asked = []
    with pytest.MonkeyPatch.context() as patch:
        look_up, connect = socket.getaddrinfo, socket.socket.connect

        def note(address):
            if address not in ("127.0.0.1", "localhost", "0.0.0.0"):
                asked.append(address)

        patch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: (note(host), look_up(host, *args, **kw))[1])
        patch.setattr(
            socket.socket, "connect", lambda self, to: (isinstance(to, tuple) and note(to[0]), connect(self, to))[1]
        )
        view = View(pairs, "some-pairs", resolution=64)
        yield view, launch(view, wait=False), asked
        gradio.close_all()


@pytest.fixture
def page(driver, server):
    return Page(driver, *server[:2])


@needs_browser
class TestInABrowser:
    def test_opens_and_shows_a_pair(self, page, tmp_path):
        assert page.find("#trl-text").text.splitlines()[1:3] == ["a red <i>cat</i>", "Subjects: <b>cat</b>"]
        assert len(page.wait("#trl-references img")) == 1
        photograph = PIL.Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
        assert len(photograph.getcolors(10**7)) > 100

    def test_masks_are_shown_or_not(self, page):
        tinted = page.colour("#trl-chosen")
        assert tinted[2] > 60 and tinted[0] < 255  # blue laid over red
        before = page.source("#trl-chosen")
        page.click("#trl-masks input")
        page.until(lambda driver: page.source("#trl-chosen") != before)
        assert np.abs(page.colour("#trl-chosen") - (255, 0, 0)).max() < 12

    def test_steps_through_all_of_them(self, page):
        for number, prompt in ((1, "a tie"), (2, "without masks"), (3, "not decoded")):
            page.click("#trl-next")
            page.says(f"row {number}, {number + 1} of 4")
            page.says(prompt)
        page.says("⚠ `chosen` can't be decoded")
        page.says("is not an image file", "#trl-why")
        page.click("#trl-next")  # there is no other
        page.click("#trl-previous")
        page.says("row 2, 3 of 4")
        page.says("No focus map: the pair has no masks of both images", "#trl-why")
        page.until(lambda driver: not driver.find_elements("css selector", "#trl-maps img"))

    def test_filters(self, page):
        page.click("#trl-kind input")
        options = page.wait("[role=option]")
        assert [option.text.removeprefix("✓").strip() for option in options] == [
            "all (4)", "tie (1)", "no masks (1)", "refused by training (1)", "flipped (0)", "dropped (0)",
        ]  # fmt: skip
        options[1].click()
        page.says("row 1, 1 of 1 · tie")
        page.says("⚠ `chosen` and `rejected` are the same picture")
        page.click("#trl-kind input")
        page.wait("[role=option]")[4].click()
        page.says("No row is flipped.")
        page.click("#trl-next")
        page.says("No row is flipped.")

    def test_noise_level(self, page):
        from selenium.webdriver import ActionChains

        before = page.source("#trl-maps")
        track = page.find("#trl-level input[type=range]")
        ActionChains(page.driver).move_to_element_with_offset(track, track.size["width"] // 2 - 2, 0).click().perform()
        page.until(lambda driver: page.source("#trl-maps") != before)
        assert float(page.find("#trl-level input[type=number]").get_property("value")) > 0.9

    def test_flip_drop_and_save(self, page, pairs, tmp_path):
        page.click("#trl-masks input")
        page.until(lambda driver: np.abs(page.colour("#trl-chosen") - (255, 0, 0)).max() < 12)
        page.click("#trl-flip")
        page.says("flipped, not saved yet")
        page.until(lambda driver: np.abs(page.colour("#trl-chosen") - (0, 0, 255)).max() < 12)
        page.click("#trl-next")
        page.says("row 1, 2 of 4")
        page.click("#trl-drop")
        page.says("dropped, not saved yet")
        folder = page.find("#trl-folder textarea, #trl-folder input")
        assert folder.get_property("value") == "some-pairs-edited"
        folder.clear()
        folder.send_keys(str(tmp_path / "saved"))
        page.click("#trl-save")
        page.says(f"Saved 3 pairs to {tmp_path / 'saved'}: 1 flipped, 1 left out.", "#trl-said")
        rows = load_preferences(str(tmp_path / "saved")).with_format("arrow")[:].to_pylist()
        assert [row["prompt"] for row in rows] == ["a red <i>cat</i>", "without masks", "not decoded"]
        assert rows[0]["chosen"]["bytes"] == pairs.with_format("arrow")[0]["rejected"].to_pylist()[0]["bytes"]
        page.click("#trl-save")
        page.says("is there already, and nothing is written over", "#trl-said")

    def test_nothing_comes_from_elsewhere(self, page, server):
        page.click("#trl-next")
        page.says("row 1, 2 of 4")
        log = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
        urls = [each["params"]["request"]["url"] for each in log if each["method"] == "Network.requestWillBeSent"]
        elsewhere = {url for url in urls if urlsplit(url).scheme not in ("data", "blob")}
        assert len(elsewhere) > 5
        assert {urlsplit(url).netloc for url in elsewhere} == {urlsplit(page.address).netloc}
        assert server[2] == []


def test_a_port_that_is_taken(pairs):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="port"):
        launch(View(pairs, "some-pairs"), taken.getsockname()[1], wait=False)


class TestView:
    def test_without_rows(self, pairs):
        with pytest.raises(InputError, match="some-pairs has no rows"):
            View(pairs.select([]), "some-pairs")

    def test_a_flipped_row_has_flipped_maps(self, pairs):
        view = View(pairs, "some-pairs", resolution=64)
        one, other = (view.map_picture(0, flipped, 0.25)[0] for flipped in (False, True))
        assert one.size == other.size and one.tobytes() != other.tobytes()
