"""Results as Markdown."""

from __future__ import annotations

from typing import Any

from suite.harness import Bound, Ratio, arms_of, spread, values_of


def number(value: float) -> str:
    """Three or four significant digits, thousands with commas."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def figure_text(values: list[float | None]) -> str:
    """Median (least to most); how often it wasn't reached."""
    reached = [v for v in values if v is not None]
    if not reached:
        return "not reached"
    s = spread(reached)
    text = number(s.median) if s.count == 1 else f"{number(s.median)} ({number(s.least)}–{number(s.most)})"
    return text if len(reached) == len(values) else f"{text}, {len(values) - len(reached)} not reached"


def comparison(kept: dict[str, Any]) -> Ratio | Bound:
    """As it was before it became JSON."""
    return Ratio(**kept | {"arms": tuple(kept["arms"])}) if "arms" in kept else Bound(**kept)


def ratio_row(case: str, ratio: Ratio | Bound, repetitions: list[dict[str, Any]]) -> str | None:
    values, sign = values_of(ratio, repetitions)
    if not values:
        return None
    s = spread(values)
    aim = reached = ""
    if ratio.target is not None:
        more = ratio.better == "more"
        aim = f"{'≥' if more else '≤'} {number(ratio.target)}"
        good = s.median >= ratio.target if more else s.median <= ratio.target
        # A bound that is already passed stays passed; one that isn't may be.
        unsure = not good and sign == (">" if more else "<")
        reached = "at least that" if unsure else "yes" if good else "**no**"
        if good and sign == ("<" if more else ">"):
            reached = "at most that"
    return (
        f"| {case} | {ratio.name} | {sign + ' ' if sign else ''}{number(s.median)} | "
        f"{number(s.least)}–{number(s.most)} | {s.count} | {aim} | {reached} |"
    )


def markdown(content: dict[str, Any], notes: tuple[str, ...] = ()) -> str:
    """One benchmark's section."""
    e = content["environment"]
    kinds = ["quick, smoke figures only"] if content["settings"]["quick"] else []
    commits = sorted({r["commit"] for reps in content["cases"].values() for r in reps})
    lines = [f"## {content['benchmark']}: {content['title']}", ""]
    facts = [*kinds, *hardware(e), f"commit {', '.join(commits)}"]
    lines += ["; ".join(facts) + ".", ""]
    lines += [*(f"- {note}" for note in notes), ""] if notes else []
    lines += figures_table({case: arms_of(repetitions) for case, repetitions in content["cases"].items()})
    rows = [
        row
        for case, repetitions in content["cases"].items()
        for ratio in content["ratios"].get(case, [])
        if (row := ratio_row(case, comparison(ratio), repetitions))
    ]
    if rows:
        lines += [
            "",
            "| case | compared | median | range | n | aim | reached |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    return "\n".join(lines) + "\n"


def figures_table(cases: dict[str, dict[str, dict[str, list[float | None]]]]) -> list[str]:
    """case -> arm -> figure -> values, one row a case where all arms have one and the same figure."""
    shown = [
        (case, arm, {f: v for f, v in figures.items() if f != "gave_up_after_s"})
        for case, arms in cases.items()
        for arm, figures in arms.items()
    ]
    names = {figure for _, _, figures in shown for figure in figures}
    if len(names) == 1:
        (figure,) = names
        arms = list(dict.fromkeys(arm for _, arm, _ in shown))
        cells = {(case, arm): figure_text(figures[figure]) for case, arm, figures in shown}
        lines = [f"| {figure}: median (range) | {' | '.join(arms)} |", "|---" * (1 + len(arms)) + "|"]
        found = dict.fromkeys(case for case, _, _ in shown)
        return [*lines, *(f"| {c} | {' | '.join(cells.get((c, a), '') for a in arms)} |" for c in found)]
    lines = ["| case | arm | figure | median (range) |", "|---|---|---|---|"]
    for case, arm, figures in shown:
        lines += [
            f"| {case} | {arm} | {figure} | {figure_text(values)} |" for figure, values in figures.items()
        ]
    return lines


def hardware(e: dict[str, Any]) -> list[str]:
    machine = ", ".join([f"{e['cpu_cores']} cores of {e['cpu']}", *e["gpus"]])
    names = ("python", "torch", "ray", "pytorch-lightning", "keras", "tensorflow-cpu")
    return [machine, ", ".join(f"{name} {e[name]}" for name in names if e.get(name))]


def page(sections: list[str]) -> str:
    head = "# Results\n\nWritten by `benchmarks/run.py`. Each ratio is of two arms of one repetition.\n\n"
    return head + "\n".join(sections)
