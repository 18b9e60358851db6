"""Visits to a page in headless Chromium at a given width: its console, requests and overflow, and a screenshot."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
from html import unescape
from pathlib import Path
from typing import NamedTuple

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

FRAME = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><style>body{margin:0}</style>
<iframe src="index.html" width="WIDTH" height="800" style="border:0"></iframe><pre></pre><script>
const frame = document.querySelector("iframe")
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement
  const wide = e => e.getBoundingClientRect().right > WIDTH + 0.5 && !e.closest(".scroll")
  document.querySelector("pre").textContent = JSON.stringify({
    width: root.clientWidth, scroll_width: root.scrollWidth, height: root.scrollHeight,
    overflowing: [...page.querySelectorAll("body *")].filter(wide).map(e => e.tagName),
    broken: [...page.images].filter(i => !i.complete || !i.naturalWidth).length,
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name.slice(0, 80)),
  })
  frame.height = root.scrollHeight
}
</script>"""


class Visit(NamedTuple):
    """The browser's observations."""

    width: int
    scroll_width: int
    height: int
    overflowing: list[str]
    """Elements that reach beyond the page's right edge, outside what scrolls by itself."""
    broken: int
    """Images that did not load."""
    requests: list[str]
    """Everything that the page loaded besides itself."""
    served: list[str]
    """All paths that were requested from the server."""
    console: list[str]


def visit(page: Path, width: int, screenshot: Path) -> Visit:
    """Opens `page` in a frame of `width` CSS pixels (Chromium's own window cannot be as narrow as a phone)."""
    served: list[str] = []
    content = {"/index.html": page.read_bytes(), "/frame.html": FRAME.replace("WIDTH", str(width)).encode()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served.append(self.path)
            self.send_response(200 if self.path in content else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(content.get(self.path, b""))

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        run = functools.partial(_chromium, f"http://127.0.0.1:{server.server_port}/frame.html")
        dom, console = run("--dump-dom", f"--window-size={max(width, 500)},900")
        seen = json.loads(unescape(re.search("<pre>(.*?)</pre>", dom, re.DOTALL)[1]))  # pyright: ignore[reportOptionalSubscript]
        run(f"--screenshot={screenshot}", f"--window-size={max(width, 500)},{min(seen['height'], 30_000)}")
    finally:
        server.shutdown()
        server.server_close()
    return Visit(**seen, served=sorted(set(served)), console=console)


def _chromium(url: str, *options: str) -> tuple[str, list[str]]:
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
        "--disable-sync --hide-scrollbars --enable-logging=stderr --virtual-time-budget=8000"
    )
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [str(CHROMIUM), *flags.split(), f"--user-data-dir={profile}", *options, url],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
