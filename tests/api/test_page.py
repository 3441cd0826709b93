"""The page in a real browser: paint, fill in, type, and see numbers change."""

import contextlib
import itertools
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import uvicorn
from tests.models import mixed

from deformer.api import tables
from deformer.api.service.app import make_app
from deformer.api.service.engine import Engine
from deformer.api.service.guard import Admission
from deformer.api.service.work import Limits
from deformer.api.tables import TableModel
from deformer.config import ModelConfig
from deformer.data.schema import Binary, image_schema
from deformer.nn.model import new_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested where playwright is installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page is tested where Chromium is installed")
PICTURES = os.environ.get("DEFORMER_SCREENSHOTS")  # a folder to look at what the tests saw
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def served(engine: Engine, **choices: Any) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(engine, **choices), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright.expect.set_options(timeout=60_000)  # a busy machine is no failure
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, url: str, width: int = 1000) -> Iterator[Any]:
    """A page that may ask nobody but its own service, and must not fail on the way."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request", lambda request: errors.append(request.url) if not request.url.startswith((url, "data:")) else None
    )
    page.goto(url)
    yield page
    page.close()
    assert errors == []


def look(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


def pixels() -> Engine:
    model = new_model(image_schema(6, 5, Binary()), ModelConfig(d_model=16, n_layers=2), 0)
    for p in model.parameters():
        p.data.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return Engine(TableModel.of(model.eval()), "pixels")


def test_pixels_are_painted_and_filled_in(browser: Any) -> None:
    with served(pixels()) as url, opened(browser, url) as page:
        expect = playwright.expect
        expect(page.locator("#about")).to_contain_text("30 features")
        expect(page.locator("#expected")).to_contain_text(".")
        before = page.locator("#expected").inner_text()
        canvas = page.locator("#canvas")
        box = canvas.bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
        expect(page.locator("#known")).to_have_text("1")
        expect(page.locator("#nll")).not_to_have_text("0.00")
        expect(page.locator("#expected")).not_to_have_text(before)
        canvas.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("0")
        expect(page.locator("#known")).to_have_text("2")
        expect(page.locator("#status")).to_contain_text("off")
        page.keyboard.press("Backspace")
        expect(page.locator("#known")).to_have_text("1")
        page.keyboard.press("Control+0")  # the browser's own
        expect(page.locator("#known")).to_have_text("1")
        page.locator("#fill").click()
        expect(page.locator("#fills canvas")).to_have_count(6)
        expect(page.locator("#fills small").first).to_contain_text("nats")
        page.locator("#surprise").check()
        look(page, "pixels")
        page.locator("#play").click()
        expect(page.locator("#known")).to_have_text("30")
        expect(page.locator("#play")).to_have_text("Draw in a random order")
        with page.expect_response("**/predict"):  # of another image
            page.locator("#play").click()
        expect(page.locator("#play")).to_have_text("Draw in a random order")
        page.locator("#clear").click()
        expect(page.locator("#known")).to_have_text("0")


@pytest.mark.parametrize("width", [1000, 360])
def test_a_row_is_filled_in_field_by_field(browser: Any, width: int) -> None:
    table = tables.learn(mixed(300), steps=150, epochs=None, minutes=None)[0]
    with served(Engine(table, "houses")) as url, opened(browser, url, width) as page:
        expect = playwright.expect
        price = page.locator(".field", has_text="price")
        expect(price.locator(".said")).to_contain_text("about")
        before = price.locator(".said").inner_text()
        page.locator(".field", has_text="size").locator("input").fill("2.5")
        expect(price.locator(".said")).not_to_have_text(before)
        expect(page.locator("#rank")).to_contain_text("nats")
        page.locator(".field", has_text="kind").locator("select").select_option(label="small")
        expect(page.locator(".field", has_text="kind").locator(".said")).to_have_text("")
        look(page, f"table-{width}")
        page.locator(".field", has_text="size").locator("input").fill("wide")
        expect(page.locator("#status")).to_contain_text("is one of numbers")
        expect(page.locator("#status")).to_be_in_viewport()
        page.locator(".field", has_text="size").locator("input").fill("1e999")
        expect(page.locator("#status")).to_contain_text("infinite")
        page.locator(".field", has_text="size").locator("input").fill("")
        expect(page.locator("#status")).to_have_text("")
        page.locator("#draw").click()
        expect(price.locator("input")).not_to_have_value("")
        expect(page.locator("#gauge")).to_have_attribute("max", "100")
        page.locator("#clear").click()
        expect(page.locator("#rank")).to_have_text("Fill in a field.")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_point_mass_is_said_and_drawn_and_the_gauge_keeps_to_the_limit_of_rows(browser: Any) -> None:
    draws = np.random.default_rng(0)
    amount = np.where(draws.random(300) < 0.5, 0.0, draws.lognormal(size=300))
    table = tables.learn(pd.DataFrame({"rain": amount, "wind": draws.normal(size=300)}), steps=60, minutes=None)[0]
    with served(Engine(table, "weather"), limits=Limits(rows=50)) as url, opened(browser, url) as page:
        expect = playwright.expect
        expect(page.locator(".field", has_text="rain").locator(".said")).to_contain_text("0: ")
        drawn = "[...document.querySelectorAll('.field canvas')].map((c) => Chart.getChart(c).data.datasets.length)"
        assert page.evaluate(drawn) == [2, 1]  # a density, and beside it a line as high as the probability
        curve = page.evaluate("Chart.getChart(document.querySelector('.field canvas')).data.datasets[0].data")
        area = sum((b["x"] - a["x"]) * (a["y"] + b["y"]) / 2 for a, b in itertools.pairwise(curve))
        assert area < 0.7  # of the half that is not 0, by slices of the quantiles: the mass is not in it
        page.locator(".field", has_text="wind").locator("input").fill("0.5")
        expect(page.locator("#rank")).to_contain_text("% of the rows")
        look(page, "point-mass")


def test_a_token_that_no_header_can_hold_is_asked_for_again(browser: Any) -> None:
    with served(pixels(), admission=Admission("secret")) as url, opened(browser, url) as page:
        expect = playwright.expect
        for wrong in ("geheimnisträger€", "wrong"):
            page.locator("#token").fill(wrong)
            page.locator("#token").press("Enter")
            expect(page.locator("#status")).to_have_text("This is not the token.")
            page.evaluate("document.getElementById('status').textContent = ''")
        page.locator("#token").fill("secret")
        page.locator("#token").press("Enter")
        expect(page.locator("#about")).to_contain_text("30 features")
