"""The page in a real browser: every figure drawn, nothing on its console, both themes, a phone, no scripts."""

import json

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from hcmegatron.cli import main
from tests.report import browser
from tests.report.browser import complaints, drawn, needs_browser, open_page, size, until
from tests.report.run_directories import make_run, make_whole_run

pytestmark = needs_browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two runs, everything in the second, compared."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / "first", start=5.4), make_whole_run(folder / "second")]
    assert (
        main(["report", *map(str, runs), "--compare", "--no-files", "--out", str(folder / "page.html")]) == 0
    )
    return folder / "page.html"


@pytest.fixture(scope="module")
def driver():
    with browser.browser() as found:
        yield found


def traces(driver, name):
    """What plotly has been given for a figure: its traces."""
    return driver.execute_script(
        f"return document.querySelector('[data-figure=\"{name}\"]').data.map(t => ({{x: t.x, y: t.y, z: t.z, "
        "mode: t.mode, text: t.mode === 'text' ? t.text : null, dash: (t.line || {}).dash, "
        "colour: (t.line || {}).color, pattern: ((t.marker || {}).pattern || {}).shape}))"
    )


def test_every_figure_is_drawn_and_the_console_is_empty(driver, report):
    assert report.stat().st_size < 10e6
    size(driver, 1100, 900)
    open_page(driver, report)
    found = drawn(driver)
    assert len(found) > 20 and min(found.values()) > 0, found
    assert found.keys() >= {"loss", "gap", "memory-2", "residual-maps-2", "connection-matrix-2", "bubble-2"}
    assert complaints(driver) == []
    # Planned, the same of both runs; as it ran, and with what that took.
    images = "return [...document.images].map(image => image.complete && image.naturalWidth > 0)"
    assert driver.execute_script(images) == [True, True, True]


def test_curves_are_told_apart_without_colour(driver, report):
    size(driver, 1100, 900)
    open_page(driver, report)
    dashes = [t["dash"] for t in traces(driver, "loss") if t["mode"] == "lines" and t["dash"] != "solid"]
    assert dashes == ["dash"]
    ends = {
        name: [t["text"][0].strip() for t in traces(driver, name) if t["text"]] for name in ("loss", "gap")
    }
    assert ends["loss"] == ["A, B"] and sorted(ends["gap"]) == ["A", "B"]  # close to each other, and apart
    patterns = [trace["pattern"] for trace in traces(driver, "bubble-2")]
    assert len(set(patterns)) == len(patterns) == 6


def test_the_slider_shows_another_step(driver, report):
    size(driver, 1100, 900)
    open_page(driver, report)
    slider = driver.find_element(By.ID, "slider")
    last = traces(driver, "residual-maps-2")[0]["z"], traces(driver, "loss")
    slider.send_keys(Keys.ARROW_LEFT)
    until(lambda: traces(driver, "residual-maps-2")[0]["z"] != last[0])
    assert driver.find_element(By.ID, "shown").text == "40"
    step = "return document.querySelector('[data-figure=\"gains-2\"]').dataset.step"
    until(lambda: driver.execute_script(step) == "40")
    slider.send_keys(Keys.HOME)
    until(lambda: driver.execute_script(step) == "20")
    slider.send_keys(Keys.END)
    until(lambda: traces(driver, "residual-maps-2")[0]["z"] == last[0])
    assert traces(driver, "loss") == last[1] and complaints(driver) == []


def test_curves_go_over_steps_tokens_or_hours(driver, report):
    size(driver, 1100, 900)
    open_page(driver, report)
    assert traces(driver, "loss")[0]["x"][-1] == 60
    for axis, last in (
        ("tokens", 60 * 64),
        ("hours", pytest.approx(60 * 0.1 / 3600, rel=1e-5)),
        ("step", 60),
    ):
        driver.find_element(By.CSS_SELECTOR, f"input[value={axis}]").click()
        until(lambda last=last: traces(driver, "loss")[0]["x"][-1] == last)
    assert complaints(driver) == []


def test_themes_and_a_phone(driver, report):
    """Colours follow the reader's theme while the page is open, and nothing is wider than a phone."""
    size(driver, 390, 800)
    open_page(driver, report)
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    light = traces(driver, "loss")[0]["colour"]
    background = "return getComputedStyle(document.body).backgroundColor"
    assert driver.execute_script(background) == "rgb(255, 255, 255)"
    size(driver, 390, 800, dark=True)
    until(lambda: traces(driver, "loss")[0]["colour"] != light)
    assert driver.execute_script(background) == "rgb(20, 24, 30)"
    assert min(drawn(driver).values()) > 0 and complaints(driver) == []


def test_without_scripts_the_numbers_are_there(driver, report):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        size(driver, 1100, 900)
        driver.get(report.as_uri())
        words = driver.find_element(By.TAG_NAME, "body").text
        assert "The figures need JavaScript. Their numbers are in the tables under them." in words
        assert "finished after step 60 of 60" in words and "rank 1 ended with SIGKILL" in words
        assert not driver.find_element(By.CSS_SELECTOR, ".plot").is_displayed()
        numbers = driver.find_element(By.ID, "numbers-validation")
        numbers.find_element(By.TAG_NAME, "summary").click()
        assert "60 4.0313 3.9026" in numbers.text
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_every_part_has_a_name_for_those_who_hear_the_page(driver, report):
    size(driver, 1100, 900)
    open_page(driver, report)
    nameless = driver.execute_script(
        "return [...document.querySelectorAll('img, [role=img], input, table')].filter(e => !(e.alt || "
        "e.getAttribute('aria-label') || (e.labels || []).length || e.querySelector('caption'))).length"
    )
    assert nameless == 0
    assert (
        driver.execute_script("return document.getElementById('slider').getAttribute('aria-valuetext')")
        == "step 60"
    )


def test_a_served_page_follows_its_run(driver, tmp_path):
    """What is added to metrics.jsonl appears; what the reader opened stays open."""
    import threading

    from plotly.offline import get_plotlyjs

    from hcmegatron.report.inputs.run import directories
    from hcmegatron.report.serve import server
    from tests.report.run_directories import train_line

    run = make_run(tmp_path / "run", steps=30, planned=60)
    with server(directories([run]), False, 0, get_plotlyjs()) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            size(driver, 1100, 900)
            open_page(driver, f"http://127.0.0.1:{running.server_port}/")
            driver.find_element(By.CSS_SELECTOR, "#numbers-loss summary").click()
            with (run / "metrics.jsonl").open("a") as stream:
                for step in range(31, 41):
                    stream.write(json.dumps(train_line(step, 1.25)) + "\n")
            words = "return document.getElementById('summary').textContent"
            until(lambda: "after step 40 of 60" in driver.execute_script(words))
            until(lambda: traces(driver, "loss")[0]["x"][-1] == 40)
            assert "1.25" in driver.find_element(By.ID, "numbers-loss").text
            assert complaints(driver) == []
        finally:
            driver.get("about:blank")
            running.shutdown()
