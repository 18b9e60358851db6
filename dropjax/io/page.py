"""Self-contained HTML pages. Every number on a page is looked up in the record that is saved with it."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:1rem 1rem 4rem;font:16px/1.55 system-ui,sans-serif;color:#1a1a1a;background:#fff}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.25rem;margin:2.5rem 0 .5rem;border-top:1px solid #ccc;padding-top:1rem}
p{max-width:46rem;overflow-wrap:anywhere}
nav a{margin-right:1em;white-space:nowrap}
a{color:#0059a0}
figure{margin:1.5rem 0}
figure img{width:100%;height:auto;display:block}
figcaption{color:#555;font-size:.9rem;max-width:46rem;margin-top:.4rem}
sup{line-height:0}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding-bottom:.3rem}
th,td{padding:.15rem .7rem .15rem 0;text-align:right;white-space:nowrap;border-bottom:1px solid #e4e4e4}
th:first-child,td:first-child{text-align:left}
.verdict{font-weight:600}
code{overflow-wrap:anywhere}
.answer{margin:1rem 0}
.answer code{display:block;overflow-wrap:normal;padding:.6rem;background:#f4f4f4;border:1px solid #ddd;user-select:all}
button{font:inherit;padding:.3rem .9rem;margin:.5rem 0}
figure svg{display:block;width:100%;overflow:visible;font:13px system-ui,sans-serif}
figure svg text{fill:#1a1a1a;stroke:#fff;stroke-width:4px;paint-order:stroke}
figure svg .quiet{fill:#555}
.strip{display:flex;justify-content:space-between;gap:1em;font-size:.85rem;margin:.45rem 0 .1rem}
@media (max-width:600px){table{font-size:.8rem}th,td{padding-right:.45rem}}
@media print{body{max-width:none;font-size:10.5pt;padding:0;print-color-adjust:exact}nav,button{display:none}
h2{break-after:avoid}figure,tr{break-inside:avoid}.scroll{overflow:visible}}
"""

SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
{script}</body>
</html>
"""


class Drawn(NamedTuple):
    """A figure drawn for a page."""

    wide: bytes
    """SVG."""
    narrow: bytes
    """SVG for a phone's width."""
    alt: str


class Columns(NamedTuple):
    """A table on the page, with a row for each entry of the list at `path` in the record."""

    path: str
    caption: str
    columns: Sequence[tuple[str, str, str]]
    """Each column as (heading, path within the entry, format)."""


def look_up(record: Any, path: str) -> Any:
    """The entry at `path`: keys and indices separated by dots."""
    for key in path.split("."):
        record = record[int(key)] if isinstance(record, list | tuple) else record[key]
    return record


def shown(value: Any, form: str = "") -> str:
    """The value formatted for reading."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return escape(value)
    text = format(value, form or (",d" if isinstance(value, int) else ".4g"))
    if match := re.fullmatch(r"(-?[0-9.]+)e([+-])0*([0-9]+)", text):
        text = f"{match[1]}·10<sup>{'−' if match[2] == '-' else ''}{match[3]}</sup>"
    return re.sub("^-", "−", text)


def number(record: Any, path: str, form: str = "") -> str:
    """HTML for the entry at `path`, which also holds its path and full value."""
    value = look_up(record, path)
    return f'<data data-path="{escape(path)}" value="{escape(str(value))}">{shown(value, form)}</data>'


def filled(text: str, record: Any) -> str:
    """`text` with each {path} or {path:format} replaced by the number at that path."""
    return re.sub(r"\{([\w.]+)(?::([^}]+))?\}", lambda m: number(record, m[1], m[2] or ""), text)


def scrolling(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table of HTML cells, which scrolls sideways if it is wider than the page."""
    heads = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def table(record: Any, columns: Columns) -> str:
    """The table that `columns` describes."""
    entries = range(len(look_up(record, columns.path)))
    rows = [[number(record, f"{columns.path}.{k}.{key}", form) for _, key, form in columns.columns] for k in entries]
    return scrolling([heading for heading, _, _ in columns.columns], rows, columns.caption)


def picture(drawn: Drawn) -> str:
    """HTML with the figure's two layouts inlined."""
    wide, narrow = (f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for svg in (drawn.wide, drawn.narrow))
    return (
        f'<figure><picture><source media="(max-width: 600px)" srcset="{narrow}">'
        f'<img src="{wide}" alt="{escape(drawn.alt)}"></picture></figure>'
    )


def render(
    template: str, title: str, record: Mapping[str, Any], drawn: Mapping[str, Drawn], unfinished: bool = False
) -> str:
    """The page that a template makes: HTML with numbers as {path} or {path:format} and, each on its own line,

    {{figure NAME}}
    {{table PATH | caption | heading = key:format | …}}
    {{if PATH}} … {{end}} and {{unless PATH}} … {{end}}, kept if the entry at PATH is present and is neither false, 0 nor
    empty, and if it is not.

    If the record is `unfinished`, sections and figures whose numbers are not there yet are left out.
    """

    def kept(match: re.Match) -> str:
        try:
            there = bool(look_up(record, match[2]))
        except LookupError:
            there = unfinished and match[1] == "unless"  # there may be something at its end
        return match[3] if there == (match[1] == "if") else ""

    def placed(match: re.Match) -> str:
        if match[1] == "figure":
            return picture(drawn[match[2]])
        path, caption, *columns = (part.strip() for part in match[2].split("|"))
        parts = ([part.strip() for part in column.rpartition("=")] for column in columns)
        return table(record, Columns(path, caption, [(heading, *_split(key)) for heading, _, key in parts]))

    text = re.sub(r"\{\{(if|unless) ([\w.]+)\}\}\n(.*?)\{\{end\}\}\n", kept, template, flags=re.DOTALL)
    if unfinished:
        text = _ready(text, record, drawn)
    headings = re.findall("<h2>(.*?)</h2>", text)
    text = re.sub("<h2>(.*?)</h2>", lambda m: f'<h2 id="s{headings.index(m[1])}">{m[1]}</h2>', text)
    links = " ".join(f'<a href="#s{k}">{heading}</a>' for k, heading in enumerate(headings))
    text = text.replace("<nav></nav>", f"<nav>{links}</nav>").replace("{title}", escape(title))
    # Figures and tables are inserted last, so that nothing in them is taken for the path of a number.
    pieces = re.split(r"(\{\{.*?\}\})", text)
    body = [
        re.sub(r"\{\{(\w+) (.*)\}\}", placed, piece) if piece.startswith("{{") else filled(piece, record) for piece in pieces
    ]
    return shell(title, "".join(body))


def _ready(text: str, record: Mapping[str, Any], drawn: Mapping[str, Drawn]) -> str:
    """The sections of a template whose numbers are all there, with the figures that are drawn."""

    def there(path: str) -> bool:
        try:
            look_up(record, path)
        except LookupError:
            return False
        return True

    text = re.sub(r"\{\{figure (\w+)\}\}\n", lambda m: m[0] if m[1] in drawn else "", text)
    first, *sections = re.split("(?=<h2>)", text)
    paths = r"\{\{table ([\w.]+)|\{([\w.]+)(?::[^}]+)?\}"
    ready = [s for s in sections if all(there(table or path) for table, path in re.findall(paths, s))]
    return first + "".join(s for s in ready if not s.strip().endswith("</h2>"))


def _split(key: str) -> tuple[str, str]:
    name, _, form = key.partition(":")
    return name, form


def shell(title: str, body: str, script: str = "") -> str:
    """A whole page around this body. Only the given script can run on it."""
    policy = ""
    if script:
        policy = f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        script = f"<script>{script}</script>\n"
    return SHELL.format(title=escape(title), style=STYLE, policy=policy, body=body, script=script)
