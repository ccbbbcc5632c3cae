"""`report.html`: all that a run left, in one page that needs no network, no scripts and no other file."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from crayon.report.contents import facts_of_images, table_of_images
from crayon.report.words import (
    SPLITS,
    data_text,
    decoded,
    headlines,
    metric_text,
    per_class,
    plain,
    seconds_text,
    table_of,
)
from crayon.system.runfolder import RunFolder

CAPTIONS = {
    "learning_curves": "Learning curves. Validation: images that weren't trained on, unchanged, under the "
    "averaged weights. Training: what was minimised, as a mean over the epoch, with augmentation, dropout and label "
    "smoothing where they are on. So these two aren't comparable; the figures below are measured alike on both.",
    "confusion_matrix": "Confusion matrix: rows are true classes, columns predictions; colour is the share of the row.",
    "reliability": "Reliability: how often the classifier is right when it is this sure (the dashed line is ideal).",
    "mistakes": "The most confident mistakes: the true class, and the predicted one with its probability.",
    "reconstructions": "Images, below them what is left after the passage through the latent code, and the absolute "
    "difference of both.",
    "latent_map": "The latent codes of the images, projected to two dimensions.",
    "samples": "Samples of fixed seeds, not picked by hand.",
    "interpolation": "Straight lines between latent seeds.",
    "nearest": "Samples and, beside them, their nearest training images.",
    "over_time": "The same fixed inputs, epoch after epoch.",
}

CLASSES_SHOWN = 100
"""Lines that the table of a run's images has at most for its classes."""


def write(folder: Path) -> Path:
    """Write `folder`/report.html from the config, metrics, result and pictures in the run folder `folder`.

    Whatever is missing, as in a run that isn't finished, is left out of the page. Raises RunFailed when the disk is
    full.
    """
    folder = Path(folder).absolute()
    run = RunFolder.at(folder)
    result, config = run.read_json("result.json") or {}, run.read_json("config.json") or {}
    rows = run.read_rows("metrics.jsonl")
    metrics = result or (rows[-1] if rows else {})
    name = str(result.get("name") or config.get("name") or folder.name)
    job = " · ".join(str(part) for part in (config.get("job"), config.get("preset")) if part)
    parts = [
        tag("p", job, "job"),
        tag("h1", name),
        _facts(result, config, rows),
        *(tag("p", text) for text in result.get("data_changes") or []),
        _cards(metrics),
        code("Command", result["command"]) if result.get("command") else "",
        pictures(folder / "pictures"),
        _metrics(metrics),
        _classes(metrics),
        _images(run.read_json("images.json") or {}),
        _pairs("Settings", config, opened=False),
        _pairs("Environment", result.get("environment") or {}, opened=True),
    ]
    return write_page(run, name, parts)


def write_page(run: RunFolder, name: str, parts: Iterable[str]) -> Path:
    """Write `run`'s report.html, called `name`, of `parts` that are HTML. Raises RunFailed when the disk is full."""
    head, _, tail = PAGE.partition("{body}")
    page = head.replace("{title}", escape(f"{name} – Crayon")) + "\n".join(filter(None, parts)) + tail
    return run.write_bytes("report.html", page.encode(errors="replace"))


def _facts(result: Mapping[str, Any], config: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    done = rows[-1].get("epoch", 0) if rows else 0
    told = [] if result else [f"unfinished: {done} of {config.get('epochs', '?')} epochs"]
    if result.get("seconds"):
        told.append(f"{seconds_text(result['seconds'])} in all")
    if result.get("train_seconds"):
        told.append(f"{seconds_text(result['train_seconds'])} of training")
    if result.get("images_per_second"):
        told.append(f"{result['images_per_second']:,.0f} images/s")
    if "epoch" in result and "epochs" in result:
        told.append(f"weights of epoch {result['epoch']} of {result['epochs']}")
    if config.get("data.source"):
        told.append(f"data: {data_text(config['data.source'], config.get('data.root'))}")
    told.append(time.strftime("%Y-%m-%d %H:%M"))
    return facts(told)


def _cards(metrics: Mapping[str, Any]) -> str:
    keys = headlines(metrics)
    return cards((metric_text(k, metrics[k]), plain(k.replace("val/", "validation/", 1))) for k in keys)


def facts(texts: Iterable[str]) -> str:
    """Facts on one line, or on several that break between them."""
    return f"<p class=facts><span>{' ·</span> <span>'.join(map(escape, texts))}</span></p>"


def cards(texts: Iterable[tuple[str, str]]) -> str:
    """A box for each figure and what it says."""
    boxes = [f"<div class=card><b>{escape(a)}</b><span>{escape(b)}</span></div>" for a, b in texts]
    return f"<div class=cards>{''.join(boxes)}</div>" if boxes else ""


def code(title: str, command: str) -> str:
    """A command to copy, below a heading."""
    words = " ".join(f"<span>{escape(word)}</span>" for word in command.split(" "))  # not broken at a hyphen
    return f'{tag("h2", title)}<pre tabindex=0 role=group aria-label="{escape(title)}"><code>{words}</code></pre>'


def pictures(folder: Path, captions: Mapping[str, str] = CAPTIONS) -> str:
    """All PNGs and GIFs in `folder`, in the order of `captions`, which are by the files' names without suffix."""
    files = [p for p in sorted(folder.glob("*.*")) if p.suffix in (".png", ".gif") and p.is_file()]
    known = list(captions)
    files.sort(key=lambda p: (known.index(p.stem) if p.stem in known else len(known), p.name))
    figures = []
    for path in files:
        kind, caption = path.suffix[1:], captions.get(path.stem, f"{plain(path.stem).capitalize()}.")
        data = base64.b64encode(path.read_bytes()).decode()
        with Image.open(path) as opened:
            width, height = opened.size
        # With its words legible: in a column of its own, and on a phone to be scrolled.
        wide = width > 900 or width > 1.5 * height
        least = f"min-width: {0.6 * width:.0f}px; " if width > 900 else ""
        style = f"{least}max-width: min(100%, {width if wide else 2 * width}px)"
        image = f'<img alt="{escape(caption)}" width={width} height={height} style="{style}" src="data:image/{kind};'
        shown = _scrolled(plain(path.stem), f'{image}base64,{data}">', "picture")
        words = f"<figcaption>{escape(caption)}</figcaption>"
        figures.append(f"<figure{' class=wide' if wide else ''}>{shown}{words}</figure>")
    return f"<h2>Pictures</h2><div class=pictures>{''.join(figures)}</div>" if figures else ""


def _metrics(metrics: Mapping[str, Any]) -> str:
    names, splits, cells = table_of(metrics)
    if not names:
        return ""
    titles = ("validation" if split == "val" else split for split in splits)
    lines = ([plain(n), *(cells.get((n, s), "") for s in splits)] for n in names)
    return tag("h2", "Figures") + table(["metric", *titles], lines)


def _classes(metrics: Mapping[str, Any]) -> str:
    """One line per class, from the keys `split/metric/class` of the split that counts."""
    keys = [key for key in metrics if per_class(key, metrics)]
    split = next((s for s in SPLITS if any(key.startswith(f"{s}/") for key in keys)), None)
    parts = [key.split("/", 2) for key in keys if key.startswith(f"{split}/")]
    names, labels = ([*dict.fromkeys(part[i] for part in parts)] for i in (1, 2))
    if not parts:
        return ""
    lines = ([c, *(metric_text(n, metrics.get(f"{split}/{n}/{c}")) for n in names)] for c in labels)
    return tag("h2", f"Classes, {split} split") + table(["class", *map(plain, names)], lines)


def _images(about: Mapping[str, Any]) -> str:
    if not about:
        return ""
    facts = "".join(tag("p", f"{name}: {text}", "facts") for name, text in facts_of_images(about))
    return tag("h2", "Images") + table(*table_of_images(about, CLASSES_SHOWN)) + facts


def _pairs(title: str, values: Mapping[str, Any], opened: bool) -> str:
    if not values:
        return ""
    lines = ([name, _value(value)] for name, value in values.items())
    state = " open" if opened else ""
    return f"<details{state} class=pairs><summary>{escape(title)}</summary>{table([], lines)}</details>"


def table(head: Iterable[str], lines: Iterable[list[str]]) -> str:
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    rows = f"{f'<tr>{top}</tr>' if top else ''}{body}"
    return _scrolled("table", f"<table>{rows}</table>", "scroll")


def _scrolled(name: str, content: str, kind: str) -> str:
    """What may be wider than the page, and then is moved sideways, also with the keyboard."""
    return f'<div class={kind} tabindex=0 role=group aria-label="{escape(name)}">{content}</div>'


def tag(tag: str, text: str, kind: str = "") -> str:
    return f"<{tag}{f' class={kind}' if kind else ''}>{escape(text)}</{tag}>" if text else ""


def escape(value: Any) -> str:
    return html.escape(decoded(str(value)), quote=True)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --ink: #22262b; --faint: #667085; --paper: #f7f8fa; --card: #fff;
  --line: #e3e6eb; --blue: #0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #9aa4b2; --paper: #15181c; --card: #1e2228; --line: #2e343c; --blue: #56b4e9 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 1100px; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere } h2 { margin: 2.2rem 0 .7rem; font-size: 1.15rem }
.job { margin: 0; color: var(--blue); font-weight: 600 } .facts, figcaption { color: var(--faint); font-size: .9rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0 }
a { color: var(--blue) }
.card, figure, pre, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: 10px }
.card { padding: .8rem 1rem } .card b { display: block; font-size: 1.6rem; font-variant-numeric: tabular-nums }
.card span { color: var(--faint); font-size: .85rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem;
  grid-auto-flow: dense; align-items: start }
figure { margin: 0; overflow: hidden } figure.wide { grid-column: 1 / -1 }
.picture { background: #fff; padding: .3rem; overflow-x: auto }
img { display: block; width: 100%; height: auto; margin: 0 auto }
figcaption { padding: .6rem .9rem } pre { padding: .8rem 1rem; margin: 0; white-space: pre-wrap }
.facts span { display: inline-block; max-width: 100%; overflow-wrap: anywhere }
pre { overflow-x: auto } pre span { display: inline-block; white-space: nowrap }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .92rem }
td, th { padding: .35rem .9rem; text-align: left; border-top: 1px solid var(--line) }
tr:first-child > * { border-top: 0 } th { color: var(--faint); font-weight: 600 }
td + td, th + th { font-variant-numeric: tabular-nums; white-space: nowrap } details { margin-top: 2rem }
.pairs td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 9rem }
@media (max-width: 30rem) { td, th { padding: .35rem .6rem } }
summary { cursor: pointer; font-weight: 600; font-size: 1.15rem; margin-bottom: .7rem }
</style>
<body><main>
{body}
</main></body></html>
"""
