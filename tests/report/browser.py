"""Chromium without a window, driven by selenium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

PROGRAMS = ("chromium", "chromedriver")  # Debian: chromium, chromium-driver
LACKING = [name for name in PROGRAMS if shutil.which(name) is None]
needs_browser = pytest.mark.skipif(
    bool(LACKING), reason=f"no {' and no '.join(LACKING)} here to open a page with"
)
WAIT_S = 60.0


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A browser that reports what pages write to their console."""
    options = Options()
    options.binary_location = shutil.which("chromium")
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def size(driver: webdriver.Chrome, width: int, height: int, dark: bool = False) -> None:
    """The window's size in CSS pixels, and which theme the reader prefers."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})


def until(what: Callable[[], Any]) -> Any:
    """What is true in the end."""
    deadline = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
    return found


def open_page(driver: webdriver.Chrome, page: Path | str) -> None:
    """The page, with every figure drawn."""
    driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)
    until(lambda: driver.execute_script("return document.documentElement.dataset.drawn"))


def drawn(driver: webdriver.Chrome) -> dict[str, int]:
    """Of every figure by name, how many of its marks are on the page: lines, points, bars, images of cells, texts."""
    return driver.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.plot')].map(div => [div.dataset.figure, "
        "div.querySelectorAll('svg.main-svg .scatterlayer .js-line, svg.main-svg .point, svg.main-svg .hm image')"
        ".length]))"
    )


def complaints(driver: webdriver.Chrome) -> list[str]:
    """What the page has written to its console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]
