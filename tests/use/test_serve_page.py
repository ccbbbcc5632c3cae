"""The served page in a real headless Chromium (Debian's), driven as a person would: pointer, keyboard, files.

uv run --group browser pytest -m faults -n 0 tests/use/test_serve_page.py
"""

from __future__ import annotations

import io
import itertools
import shutil
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

import crayon
from crayon.use.serve import app as web

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)"),
]
QUIET = 0.5
"""Seconds without an answer after which none is under way: one takes a tenth of that."""
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def address(runs):
    """Where the page is served, over a tiny model of each kind."""
    import uvicorn

    models = {job: crayon.load(runs / job, device="cpu") for job in ("mnist", "autoencoder", "gan")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = web.build(models, max_mib=1)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs uv run --group browser ...")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, address):
    """Opens the page of a model. At the end nothing may have failed, and nobody else may have been asked."""
    contexts, wrong = [], []

    def new(job, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or wrong.append(r.url))
        page.goto(f"{address}/#{job}")
        page.wait_for_selector(".panel:visible")
        page.wrong = wrong
        return page

    yield new
    for context in contexts:
        context.close()
    assert wrong == []


def seven(page):
    """The points of a seven on the visible canvas."""
    box = page.locator(".panel:visible canvas").bounding_box()
    corners = [(0.3, 0.2), (0.7, 0.2), (0.42, 0.8)]
    points = [np.linspace(a, b, 11) for a, b in itertools.pairwise(corners)]
    where = [box["x"], box["y"]] + np.concatenate(points) * [box["width"], box["height"]]
    return where.tolist()


def draw(page):
    points = seven(page)
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point)
    page.mouse.up()


def answers(page):
    return int(page.locator(".panel:visible").get_attribute("data-answers"))


def shares(page):
    """The probabilities as they stand beside the bars, in percent."""
    texts = page.locator(".panel:visible .value").all_inner_texts()
    return [float(text.removesuffix(" %")) for text in texts]


def until(page, condition):
    """Wait for a condition in JavaScript. Playwright's own way is an eval() in the page, which the page forbids."""
    deadline = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def settled(page):
    """Wait until the page has been answered and asks no more."""
    until(page, "Number(document.querySelector('.panel:not([hidden])').dataset.answers) > 0")
    # Not "networkidle": Playwright remembers that a page once was.
    count, since = answers(page), time.monotonic()
    while time.monotonic() - since < QUIET:
        page.wait_for_timeout(20)
        if answers(page) != count:
            count, since = answers(page), time.monotonic()


def test_a_digit_is_drawn_with_the_mouse(opened):
    page = opened("mnist")
    assert page.locator(".label").all_inner_texts()[0] == "?"
    assert page.get_by_role("button", name="Clear").is_disabled()
    draw(page)
    settled(page)
    assert abs(sum(shares(page)) - 100) < 0.6
    label = page.locator(".first .label").inner_text()
    assert page.locator(".bars .best .label").inner_text() == label
    assert max(shares(page)) == shares(page)[int(label)]
    widths = page.locator(".fill").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert widths.index(max(widths)) == int(label)
    assert page.locator(".seen img").evaluate("image => image.naturalWidth") == 16
    page.wait_for_timeout(900)
    assert page.locator(".panel:visible .spoken").inner_text().startswith(f"{label}, ")
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".first .label").inner_text() == "?"


def test_a_digit_is_drawn_with_a_finger(opened, browser):
    page = opened("mnist", **PHONE)
    finger = page.context.new_cdp_session(page)

    def touch(kind, *points):
        at = [{"x": x, "y": y} for x, y in points]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    first, *others = seven(page)
    touch("touchStart", first)
    for point in others:
        touch("touchMove", point)
    touch("touchEnd")
    settled(page)
    assert abs(sum(shares(page)) - 100) < 0.6
    assert page.evaluate("scrollY") == 0  # the finger drew, and didn't scroll
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_digit_is_drawn_with_the_keyboard(opened):
    page = opened("mnist")
    page.locator(".panel:visible canvas").focus()
    for key in ["Space", *["ArrowDown"] * 6, "Space"]:
        page.keyboard.press(key)
    settled(page)
    assert abs(sum(shares(page)) - 100) < 0.6
    page.keyboard.press("Delete")
    assert page.locator(".first .label").inner_text() == "?"


def test_undo_takes_back_a_stroke(opened):
    page = opened("mnist")
    draw(page)
    settled(page)
    before = shares(page)
    box = page.locator(".panel:visible canvas").bounding_box()
    page.mouse.click(box["x"] + 20, box["y"] + box["height"] - 20)
    settled(page)
    count = answers(page)
    page.get_by_role("button", name="Undo").click()
    until(page, f"document.querySelector('.panel:not([hidden])').dataset.answers > {count}")
    settled(page)
    assert shares(page) == before


def test_a_file_is_chosen_and_a_bad_one_is_told(opened):
    page = opened("mnist")
    out = io.BytesIO()
    Image.linear_gradient("L").save(out, "PNG")
    chooser = page.locator(".panel:visible input[type=file]")
    chooser.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": out.getvalue()})
    settled(page)
    assert page.locator(".photo").is_visible()
    assert abs(sum(shares(page)) - 100) < 0.6
    chooser.set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": b"nothing"})
    until(page, "document.querySelector('.problem').textContent.includes('no picture')")
    assert [text for text in page.wrong if "422" in text]
    page.wrong.clear()  # Chromium's own line about the 422
    draw(page)
    until(page, "document.querySelector('.problem').textContent === ''")
    assert not page.locator(".photo").is_visible()


def test_a_drawing_is_reconstructed(opened):
    page = opened("autoencoder")
    draw(page)
    settled(page)
    for name in ("seen", "made", "difference"):
        assert page.locator(f".panel:visible img.{name}").evaluate("image => image.naturalWidth") == 16
    assert float(page.locator(".panel:visible .error").inner_text()) > 0
    assert page.locator(".panel:visible .code b").count() == 32


def test_sliders_move_an_image(opened):
    page = opened("gan")
    settled(page)
    until(page, "[...document.querySelectorAll('.grid img')].every(image => image.naturalWidth === 32)")
    portrait = "document.querySelector('.portrait img').src"
    first = page.evaluate(portrait)
    page.get_by_label("Direction 1").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    until(page, f"{portrait} !== {first!r}")
    assert page.locator("output").all_inner_texts()[0] == "0.5"
    page.locator(".grid button").nth(3).click()
    seed = page.locator(".grid button").nth(3).get_attribute("data-seed")
    until(page, "document.querySelectorAll('.grid button[aria-pressed=true]').length === 1")
    assert page.get_by_label("Seed").input_value() == seed
    assert page.locator("output").all_inner_texts()[0] == "0.0"


def test_models_are_changed_and_the_page_remembers_which(opened):
    page = opened("autoencoder")
    page.locator("#tabs button").nth(2).click()
    assert page.locator(".panel:visible .portrait").count() == 1
    page.reload()
    page.wait_for_selector(".panel:visible .portrait")
    assert page.locator("#tabs [aria-current]").get_attribute("data-name") == "gan"


def test_the_api_is_described(opened, address):
    page = opened("mnist")
    page.goto(f"{address}/docs")
    page.wait_for_selector("article")
    assert page.locator("article").count() == 4
    assert "curl" in page.locator("article pre").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("job", ["mnist", "autoencoder", "gan"])
def test_words_can_be_read_and_everything_has_a_name(opened, scheme, job):
    page = opened(job, color_scheme=scheme)
    if job != "gan":
        draw(page)
    settled(page)
    weak, nameless = page.evaluate(CONTRAST)
    assert weak == []
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", ["#mnist", "#autoencoder", "#gan", "docs", "report"])
def test_axe_finds_nothing(opened, address, runs, scheme, place):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs uv run --group browser ..."
    )
    page = opened("mnist", color_scheme=scheme)
    report = (runs / "mnist" / "report.html").as_uri()
    page.goto(report if place == "report" else f"{address}/{place}")
    page.wait_for_selector("h1")
    page.wait_for_timeout(1500)  # until the page, with its thumbnails, is there
    found = axe.Axe().run(page)
    assert [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found.response["violations"]] == []
    page.wrong[:] = [url for url in page.wrong if not url.startswith("file:")]


# WCAG 2.1, 1.4.3: a ratio of 4.5 between text and what lies behind it; 4.1.2: every control has a name.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const shown = [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility());
  const weak = [];
  for (const e of shown) {
    if (e.disabled || ![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) weak.push([e.className, e.textContent.trim().slice(0, 30), ratio]);
  }
  const controls = shown.filter((e) => e.matches('button, a, input, img, canvas'));
  const nameless = controls.filter((e) => !(e.textContent.trim() || e.getAttribute('aria-label') || e.title
    || e.hasAttribute('alt') || e.closest('label'))).map((e) => e.outerHTML);
  return [weak, nameless];
}"""
