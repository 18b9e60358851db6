"""A self-contained page about a solution. Its numbers are those of `solution.json`."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dropjax.core.solution import Outcome, Solution
from dropjax.io.page import Columns, filled, number, scrolling, shell, shown, table

SOLVED, UNSOLVED = "A dropped stack, put back in order", "A dropped stack: the best order so far"
"""Titles of the page."""

SHOWN = 20
"""The most stages that are drawn. If there are more, half of these are the first ones and half the last."""

COPYING = """
const button = document.getElementById("copy"), answer = document.getElementById("permutation")
button.hidden = false
button.onclick = async () => {
  try { await navigator.clipboard.writeText(answer.textContent) }
  catch { getSelection().selectAllChildren(answer); document.execCommand("copy") }
  button.textContent = "Copied"
  setTimeout(() => button.textContent = "Copy the permutation", 2000)
}
"""

SURE = {
    Outcome.EXACT: "Every error is float32's own: on each output, the RMS error over all {rows} rows is at most "
    "10<sup>−5</sup> of pred's spread, or half a unit in the last place of float32 where that is more. No other answer that "
    "was tried does as well.",
    Outcome.EXACT_UP_TO_TIES: "Every error is float32's own on all {rows} rows. The pieces listed here can be exchanged "
    "without any table showing it; everything else is settled.",
    Outcome.NOISE_FLOOR: "pred is rounded or noisy, by {noise_floor:.2g} (RMS). No error on the {rows} rows is larger than "
    "that explains, and no other answer that was tried fits as well.",
    Outcome.NOT_SOLVED: "This is the best order found, but not the answer: its errors on the {rows} rows are larger "
    "than float32 or pred's own rounding explains, or other orders fit as well.",
}
"""What each outcome means for the errors, and for other answers."""


def result_page(solution: Solution, expected_sha256: str | None = None) -> str:
    """The page: the permutation, how sure it is, what was assumed, how it went, and the pairing's margins."""
    record = solution.to_json(expected_sha256)
    title = SOLVED if record["solved"] else UNSOLVED
    verdict = "Solved: {outcome}" if record["solved"] else "Not solved ({stop_reason}); what follows is the best so far"
    stages = [
        *(("stage", "name", ""), ("seconds", "seconds", ".2f"), ("MSE", "mse", ".3g")),
        *(("on rows", "rows", ""), ("evaluations", "evaluations", ""), ("moves", "swaps", "")),
    ]
    body = [
        f"<h1>{title}</h1>",
        filled(
            f'<p class="verdict">{verdict}.</p>'
            "<p>MSE {mse:.3g} over all {rows} rows, largest error {max_abs_error:.2g}.</p>",
            record,
        ),
        "<h2>The permutation</h2>",
        "<p>Piece numbers from the first block to the last: for each block the input half, then the output half. The last "
        "layer is at the end.</p>",
        f'<div class="answer"><code id="permutation">{solution.permutation_text.replace(",", ",<wbr>")}</code>'
        '<button id="copy" type="button" hidden>Copy the permutation</button></div>',
        filled("<p>SHA-256: <code>{sha256}</code></p>", record),
        "<h2>How sure it is</h2>",
        *_sure(solution, record),
        "<h2>What was assumed</h2>",
        _assumed(record),
        "<h2>How it went</h2>",
        filled("<p>Method {method}, seed order {seed_order}, on {device}, {precision}.</p>", record),
        errors_drawn(record["stages"]),
        orders_drawn(record["stages"], record["permutation"][0:-1:2]),
        table(record, Columns("stages", "Stage by stage", stages)),
        "<h2>The pairs</h2>",
        *_pairs(record),
    ]
    return shell(title, "\n".join(part for part in body if part), COPYING)


def _sure(solution: Solution, record: Mapping[str, Any]) -> list[str]:
    """The evidence for the answer, and what is left open."""
    said = [filled(f"<p>{SURE[solution.outcome]}</p>", record)]
    if record.get("mse_of_variance") is not None:
        said.append(filled("<p>The MSE is {mse_of_variance:.2g} of pred's variance.</p>", record))
    if record.get("reason"):
        said.append(f"<p>{escape(record['reason'])}.</p>")
    if record["expected_sha256_matches"] is not None:
        word = "is" if record["expected_sha256_matches"] else "is not"
        said.append(f"<p>The hash {word} the expected one.</p>")
    if record.get("replay"):
        said.append(
            filled("<p>A replay in float64 has MSE {replay.mse:.3g}, largest error {replay.max_abs_error:.2g}.</p>", record)
        )
    lists = [
        ("Pieces that no table can tell apart", "; ".join(", ".join(map(str, group)) for group in record["ties"])),
        ("Input halves whose partner is in doubt (small margin)", ", ".join(map(str, record["doubtful"]))),
        ("Input halves of blocks whose place is in doubt", ", ".join(map(str, record.get("unsettled", [])))),
    ]
    said += [f"<p>{what}: {numbers}.</p>" for what, numbers in lists if numbers]
    none = record["solved"] and not record["ties"]
    return [*said, "<p>No interchangeable pieces were found.</p>"] if none else said


def _assumed(record: Mapping[str, Any]) -> str:
    """The assumptions that the answer rests on."""
    lines = [
        filled("Every block is x + W_out·a(W_in·x + b_in) + b_out with the activation a = {activation}.", record),
        filled("All {rows} rows of the table come from this network, and all of them count.", record),
        "pred is rounded or noisy, as said above."
        if record["outcome"] == Outcome.NOISE_FLOOR
        else "pred is what the network computed in float32, not rounded further.",
        *(f"{escape(note[0].upper() + note[1:])}." for note in record.get("notes", [])),
    ]
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _pairs(record: Mapping[str, Any]) -> list[str]:
    """The margins of the pairing, as a drawing and as a table with the closest calls first."""
    pairing = record["pairing"]
    rows = [
        [number(record, f"pairing.pairs.{k}.{half}") for half in (0, 1)]
        + [number(record, f"pairing.{name}.{k}", ".3f") for name in ("own", "runner_up", "gap")]
        for k in sorted(range(len(pairing["pairs"])), key=lambda k: pairing["gap"][k] or 0)
    ]
    return [
        filled(
            "<p>The pairs that the weights suggest (signal {pairing.signal}); the search may have changed them.</p>", record
        ),
        margins_drawn(pairing["own"], pairing["runner_up"]),
        scrolling(["input half", "output half", "score", "next best", "margin"], rows, "The closest calls first"),
    ]


# Drawings: horizontal positions are percentages of the page's width, so that drawings fit a phone and text keeps its size.


def _drawing(height: float, alt: str, marks: Sequence[str], caption: str) -> str:
    svg = f'<svg role="img" aria-label="{escape(alt)}" height="{height:g}">{"".join(marks)}</svg>'
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _text(x: float, y: float, text: str, anchor: str = "start", quiet: bool = False) -> str:
    kind = ' class="quiet"' if quiet else ""
    return f'<text x="{x:.2f}%" y="{y:g}" text-anchor="{anchor}"{kind}>{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    ends = f'x1="{x1:.2f}%" y1="{y1:g}" x2="{x2:.2f}%" y2="{y2:g}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"/>'


def _some(stages: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The stages to draw, and what the caption says about the others."""
    if len(stages) <= SHOWN:
        return stages, ""
    half = SHOWN // 2
    return [*stages[:half], *stages[-half:]], f" The first and the last {half} of {len(stages)} stages are drawn."


def errors_drawn(stages: Sequence[Mapping[str, Any]]) -> str:
    """The MSE after each stage that decides an order, on a logarithmic scale; "" if there are fewer than two."""
    drawn, others = _some([stage for stage in stages if stage["mse"] is not None and stage["mse"] > 0])
    if len(drawn) < 2:
        return ""
    logs = [math.log10(stage["mse"]) for stage in drawn]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    high += high == low
    places = [4 + 92 * (log - low) / (high - low) for log in logs]
    step = -(-(high - low) // 5)
    bottom = 36 * len(drawn) + 6
    marks = []
    for power in range(low, high + 1, step):
        x = 4 + 92 * (power - low) / (high - low)
        sign = "−" if power < 0 else ""
        label = f'10<tspan dy="-5" font-size="10">{sign}{abs(power)}</tspan>'
        marks += [_line(x, 0, x, bottom, "#e4e4e4"), _text(x, bottom + 16, label, "middle", quiet=True)]
    dots, names = [], []
    for k, (stage, x) in enumerate(zip(drawn, places, strict=True)):
        y = 36 * k + 26
        if k:
            marks.append(_line(places[k - 1], y - 36, x, y, "#0072B2", 2))
        dots.append(f'<circle cx="{x:.2f}%" cy="{y}" r="4.5" fill="#0072B2"/>')
        names.append(_text(0, y - 14, f"{escape(stage['name'])}: {_power(stage['mse'])} on {stage['rows']:,} rows"))
    marks += names + dots
    alt = "MSE after each stage: " + ", ".join(f"{stage['name']} {stage['mse']:.2g}" for stage in drawn)
    return _drawing(bottom + 22, alt, marks, f"MSE after each stage, from the first to the last.{others}")


def _power(value: float) -> str:
    """A number marked up for SVG text."""
    return (
        shown(value, ".2g")
        .replace("<sup>", '<tspan dy="-5" font-size="10">')
        .replace("</sup>", '</tspan><tspan dy="5"> </tspan>')
    )


def orders_drawn(stages: Sequence[Mapping[str, Any]], final: Sequence[int]) -> str:
    """The order after each stage as a strip of blocks, each in the colour of its final place; "" without orders."""
    place = {half: k for k, half in enumerate(final)}
    drawn, others = _some([stage for stage in stages if sorted(stage.get("order", [])) == sorted(final)])
    if len(drawn) < 2 or len(final) < 2:
        return ""
    strips = []
    for stage in drawn:
        right = sum(place[half] == k for k, half in enumerate(stage["order"]))
        cells = "".join(
            f'<rect x="{k}" width="1.05" height="1" fill="{_colour(place[half] / (len(final) - 1))}"/>'
            for k, half in enumerate(stage["order"])
        )
        told = f"{right} of {len(final)} blocks in their final place"
        strips.append(
            f'<div class="strip"><span>{escape(stage["name"])}</span><span>{told}</span></div>'
            f'<svg role="img" aria-label="{escape(stage["name"])}: {told}" height="18" viewBox="0 0 {len(final)} 1" '
            f'preserveAspectRatio="none">{cells}</svg>'
        )
    caption = (
        "The order after each stage. A block has the colour of its final place, dark for the first, light for the last."
    )
    caption += others
    return f"<figure>{''.join(strips)}<figcaption>{caption}</figcaption></figure>"


def _colour(share: float) -> str:
    """A colour from dark blue (0) to light yellow (1), whose lightness rises too, so that it can be printed in grey."""
    ends = (0x1B, 0x2A, 0x6B), (0x2A, 0x9D, 0x8F), (0xF6, 0xE7, 0x8C)
    k, part = min(int(2 * share), 1), 2 * share - min(int(2 * share), 1)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(ends[k], ends[k + 1], strict=True))


def margins_drawn(own: Sequence[float | None], runner_up: Sequence[float | None]) -> str:
    """The score of each pair, and the best of its input half with another output half, on one scale; "" for one pair."""
    rows = {"the pairs' scores": ([of for of in own if of is not None], "#0072B2")}
    rows["next best"] = ([of for of in runner_up if of is not None], "#D55E00")
    values = [of for scores, _ in rows.values() for of in scores]
    if len(own) < 2 or not values or max(values) == min(values):
        return ""
    low, high = min(values), max(values)
    marks = []
    for k, (name, (scores, colour)) in enumerate(rows.items()):
        y = 44 * k + 30
        marks += [_text(0, y - 16, name), _line(4, y, 96, y, "#e4e4e4")]
        places = (4 + 92 * (of - low) / (high - low) for of in scores)
        marks += [f'<circle cx="{x:.2f}%" cy="{y}" r="5" fill="{colour}" fill-opacity="0.45"/>' for x in places]
    marks += [
        _text(4, 100, shown(low, ".3g"), "middle", quiet=True),
        _text(96, 100, shown(high, ".3g"), "middle", quiet=True),
    ]
    least = min((a - b for a, b in zip(own, runner_up, strict=True) if a is not None and b is not None), default=0.0)
    alt = f"Scores of the pairs and of the next best, from {low:.3g} to {high:.3g}; least margin {least:.3g}"
    caption = f"Scores on one scale. The least margin of a pair over its input half's next best is {shown(least, '.3g')}."
    return _drawing(106, alt, marks, caption)
