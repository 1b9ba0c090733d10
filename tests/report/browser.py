"""A headless browser for pages: what a script finds in them, and how they look."""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
needed = pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(NAMES)} on the path")

FRAME = """<!doctype html><meta charset="utf-8"><title>probe</title>
<style>body { margin: 0 } iframe { border: 0; width: WIDTHpx; height: HEIGHTpx }</style>
<iframe src="PAGE"></iframe><pre id="found"></pre>
<script>
  const frame = document.querySelector("iframe"), errors = [];
  const tell = (found) => { document.getElementById("found").textContent = JSON.stringify(found); };
  const watch = () => {
    const page = frame.contentWindow;
    page.addEventListener("error", (event) => errors.push(String(event.message)));
    page.addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
    const refused = (event) => errors.push(`${event.violatedDirective} ${event.blockedURI}`);
    page.document.addEventListener("securitypolicyviolation", refused);
    const log = page.console.error;
    page.console.error = (...words) => { errors.push(words.join(" ")); log(...words); };
  };
  const early = setInterval(() => {
    if (frame.contentWindow.location.href !== "about:blank") { clearInterval(early); watch(); }
  }, 1);
  const settled = (page, test) => new Promise((done) => {
    const again = setInterval(() => { if (test(page)) { clearInterval(again); done(); } }, 200);
  });
  const sleep = (time) => new Promise((done) => setTimeout(done, time));
  frame.addEventListener("load", async () => {
    const page = frame.contentWindow, document = page.document;
    await settled(page, () => document.documentElement.dataset.ready);
    const drawn = () => settled(page, () => {
      const plots = [...document.querySelectorAll(".drawn .plot")];
      return plots.length && plots.every((plot) => plot.result);
    });
    await sleep(500);
    try {
      tell({ errors, found: await (async () => { SCRIPT })() });
    } catch (error) { tell({ errors: [...errors, String(error)] }); }
  });
</script>
"""


ATTEMPTS = 3
"""Times that a page is looked at before it counts as broken."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which the folder's files are, for a page and the one that looks at it."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


def run(*words: str) -> str:
    assert BROWSER is not None
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=100000",
    ]
    done = subprocess.run([BROWSER, *flags, *words], capture_output=True, text=True, timeout=180, check=True)
    return done.stdout


def framed(page: Path, script: str, width: int, height: int) -> str:
    """A page beside `page` that shows it at a width which the browser's own window cannot have."""
    probe = FRAME.replace("SCRIPT", script).replace("WIDTH", str(width)).replace("HEIGHT", str(height))
    (page.parent / "probe.html").write_text(probe.replace("PAGE", html.escape(page.name)))
    return "probe.html"


def look(page: Path, script: str, width: int = 1280, height: int = 900, *flags: str) -> dict[str, Any]:
    """`found` is what `script` returns, which knows `page` (the window) and `document`; and `errors`.

    Virtual time can run out on a busy machine before a page is drawn; then it is looked at again.
    """
    window = f"--window-size={max(500, width)},{height}"
    for _ in range(ATTEMPTS):
        with served(page.parent) as address:
            dom = run("--dump-dom", window, *flags, f"{address}/{framed(page, script, width, height)}")
        if (found := re.search(r'<pre id="found">(.+?)</pre>', dom, re.DOTALL)) is not None:
            return json.loads(html.unescape(found[1]))
    raise AssertionError("the page never became ready")


def screenshot(page: Path, to: Path, width: int = 1280, height: int = 900, *flags: str) -> Path:
    """The page as it looks, as PNG; narrow ones have the browser's ground beside them."""
    with served(page.parent) as address:
        window = f"--window-size={max(500, width)},{height}"
        run(f"--screenshot={to}", window, *flags, f"{address}/{framed(page, 'return 0', width, height)}")
    return to
