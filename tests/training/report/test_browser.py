"""The page in a real browser, without a network: nothing is loaded, nothing complains, nothing is cut off."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.training.report.run import CONTROLS, COUNT, SEARCH, measure, real_report, report, tables_of
from training.report import render
from training.report.page import render_search

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt install chromium)")

LOOK = """
<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach(each => each.open = true);
  const box = each => each.getBoundingClientRect();
  const seen = [...document.querySelectorAll("section, figure, svg")];
  document.body.innerHTML = "<pre>" + JSON.stringify({
    sections: [...document.querySelectorAll("section")].map(each => [each.id, box(each).height]),
    flat: seen.filter(each => box(each).height < 20 || box(each).width < 20).map(each => each.outerHTML.slice(0, 99)),
    inside: innerWidth, wide: document.documentElement.scrollWidth,
    loaded: performance.getEntriesByType("resource").map(each => each.name),
  }).replace(/</g, "&lt;") + "</pre>";
})</script>
"""


def opened(folder: Path, text: str, *, width: int, options: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """What a browser of this width makes of the page, and what it wrote to its console."""
    page = folder / "page.html"
    page.write_text(text.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    command = [
        str(BROWSER),
        "--headless=new",
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},1200",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        *options,
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    shown = re.search(r"<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert shown, done.stdout[:500]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(shown[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), console


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (1200, render(report(tables=tables_of(CONTROLS, COUNT)))),
        (500, render(real_report(1))),
        (500, render_search(SEARCH)),
        (1200, render(report(measure(1, gain=-0.01)))),
    ],
    ids=["three seeds", "one seed of a real log, on a phone", "a search, on a phone", "a student that loses"],
)
def test_it_opens_whole_and_quiet(tmp_path: Path, width: int, text: str):
    """Every section and drawing has a size, tables scroll in their boxes, nothing is fetched, the console is empty."""
    found, console = opened(tmp_path, text, width=width)

    assert console == ""
    assert found["loaded"] == []
    assert found["flat"] == []
    assert [name for name, _ in found["sections"]] == re.findall(r'<section [^>]*?id="([\w-]+)"', text)
    assert all(height > 60 for _, height in found["sections"])
    assert found["wide"] <= found["inside"] <= width


def test_a_console_that_complains_is_heard(tmp_path: Path):
    """The test above can fail: a script that throws, a table that sticks out, an image from elsewhere."""
    wide = '<section id="a"><div style="width: 3000px">wide</div></section>'
    thrown = '<script>throw new Error("heard")</script><img src="https://example.com/x.png">'

    found, console = opened(tmp_path, f"<body>{wide}{thrown}</body>", width=600)

    assert "heard" in console
    assert found["wide"] > found["inside"]
    assert found["loaded"] == ["https://example.com/x.png"]
