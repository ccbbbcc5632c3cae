#!/usr/bin/env python
"""How long a drawn digit waits for its answer, at a page that `crayon JOB serve` serves already.

    uv run jobs/mnist.py serve runs/RUN
    uv run --group browser benchmarks/serving.py http://127.0.0.1:8000

Prints, for each classifier or autoencoder with grey images that is served there:

api     from a request with the 280 x 280 PNG of a drawn seven to the last byte of its answer, on one connection
page    in headless Chromium, from a pointer event to the animation frame after the one that draws the new bars: the
        drawing, its PNG, the request, the model, the answer and the layout. Events are 150 ms apart
stroke  the same while a stroke is drawn with an event every 16 ms: from each event to the bars that first contain it
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import statistics
import sys
import time
from urllib.parse import quote, urlsplit

from PIL import Image, ImageDraw

from crayon.system.host import usable_cores

EVENTS = 60
VERBS = {"classify": "classify", "reconstruct": "reconstruct"}

IN_PAGE = """async ([pause, count]) => {
  const canvas = document.querySelector('.panel:not([hidden]) canvas');
  const panel = canvas.closest('.panel');
  const box = canvas.getBoundingClientRect();
  canvas.setPointerCapture = () => {};
  const event = (type, i) => canvas.dispatchEvent(new PointerEvent(type, { pointerId: 1, isPrimary: true, button: 0,
    bubbles: true, clientX: box.left + box.width * (0.5 + 0.3 * Math.cos(i / 9)),
    clientY: box.top + box.height * (0.5 + 0.3 * Math.sin(i / 9)) }));
  // Every request has what was drawn when it was made.
  const ask = window.fetch;
  let sent = 0, waiting = [], times = [];
  window.fetch = (...a) => { sent = performance.now(); return ask(...a); };
  new MutationObserver(() => {
    const made = sent;
    requestAnimationFrame(() => requestAnimationFrame(() => {
      const now = performance.now();
      times.push(...waiting.filter((t) => t < made).map((t) => now - t));
      waiting = waiting.filter((t) => t >= made);
    }));
  }).observe(panel, { attributes: true, attributeFilter: ['data-answers'] });
  event('pointerdown', 0);
  await new Promise((resolve) => setTimeout(resolve, 1000));
  times = []; waiting = [];
  for (let i = 1; i <= count; i++) {
    waiting.push(performance.now());
    event('pointermove', i);
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  await new Promise((resolve) => setTimeout(resolve, 1000));
  event('pointerup', count);
  window.fetch = ask;
  return times;
}"""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: benchmarks/serving.py http://127.0.0.1:8000")
    address = sys.argv[1].rstrip("/")
    host = urlsplit(address).netloc
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request("GET", "/api/models")
    except OSError as error:
        sys.exit(f"{address} can't be reached ({error}); start `crayon JOB serve` first.")
    models = json.loads(connection.getresponse().read())
    print(f"{usable_cores()} cores, load {os.getloadavg()[0]:.1f}, {EVENTS} events each")
    for model in models:
        if model["ability"] in VERBS and model["channels"] == 1:
            report(model["name"], "api", api(connection, model))
            for what, pause in (("page", 150), ("stroke", 16)):
                report(model["name"], what, page(address, model, pause))


def api(connection: http.client.HTTPConnection, model: dict) -> list[float]:
    """Milliseconds of each request."""
    picture = Image.new("L", (280, 280))
    ImageDraw.Draw(picture).line([(90, 60), (190, 60), (120, 220)], fill=255, width=20)
    content = io.BytesIO()
    picture.save(content, "PNG")
    path = f"/api/models/{quote(model['name'])}/{VERBS[model['ability']]}?kind=drawing"
    times = []
    for _ in range(EVENTS):
        begun = time.perf_counter()
        connection.request("POST", path, content.getvalue(), {"Content-Type": "image/png"})
        answer = connection.getresponse()
        answer.read()
        times.append(1000 * (time.perf_counter() - begun))
        assert answer.status == 200, answer.status
        time.sleep(0.05)
    return times


def page(address: str, model: dict, pause: float) -> list[float]:
    """Milliseconds of each pointer event."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.on(
            "response", lambda answer: answer.status >= 400 and sys.exit(f"{answer.status} {answer.url}")
        )
        opened.goto(f"{address}/#{quote(model['name'])}")
        opened.wait_for_selector(".panel:visible canvas")
        times = opened.evaluate(IN_PAGE, [pause, EVENTS])
        browser.close()
    return times


def report(name: str, what: str, times: list[float]) -> None:
    times = sorted(times)
    median, late = statistics.median(times), times[int(0.95 * len(times))]
    print(f"{name:12} {what:7} median {median:5.1f} ms, 95 % within {late:5.1f} ms, n = {len(times)}")


if __name__ == "__main__":
    main()
