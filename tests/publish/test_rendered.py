"""The page in a browser without a window: nothing is cut off, on paper of any width, on light and on dark ground."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from typing import Any

import pytest

from irm_fast.publish.names import PAGE

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOOKS = """
const within = (inner, outer) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1
    && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
const drawings = [...document.querySelectorAll("svg")];
const texts = drawings.flatMap(svg => [...svg.querySelectorAll("text")].map(text => [svg, text]));
const boxes = texts.map(([svg, text]) => [svg.getBoundingClientRect(), text.getBoundingClientRect()]);
document.body.dataset.found = JSON.stringify({
    width: document.documentElement.scrollWidth, window: innerWidth, drawings: drawings.length,
    cut: texts.filter((_, i) => !within(boxes[i][1], boxes[i][0])).map(([_, text]) => text.textContent),
    smallest: Math.min(...boxes.map(([outer]) => 11.5 * outer.width / 320)),
    ground: getComputedStyle(document.documentElement).backgroundColor,
    ink: getComputedStyle(document.documentElement).color,
});
"""
SECURITY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def look(finished, tmp_path_factory):
    """A function that opens the page in a window of a width, and returns what a script finds there."""
    if BROWSER is None:
        pytest.skip("needs Chromium")
    folder = tmp_path_factory.mktemp("browser")
    page, count = SECURITY.subn("", (finished / PAGE).read_text(encoding="utf-8"))
    assert count == 1  # which would not let the script run
    path = folder / "page.html"

    def opened(width: int, *options: str, style: str = "") -> dict[str, Any]:
        more = f"<style>{style}</style><script>{LOOKS}</script></body>"
        path.write_text(page.replace("</body>", more), encoding="utf-8")
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", *options]
        done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
        found = re.search(r'data-found="([^"]*)"', done.stdout)
        assert found, done.stderr[-500:]
        return dict(json.loads(unescape(found[1])))

    return opened


@pytest.mark.parametrize("width", [1200, 768, 500])
def test_nothing_is_cut_off(look, width):
    found = look(width)
    assert found["drawings"] >= 8
    assert found["width"] <= found["window"]
    assert not found["cut"]
    assert found["smallest"] >= 9  # pixels


def test_dark_ground_where_the_reader_has_it(look):
    light, dark = look(1200), look(1200, "--blink-settings=preferredColorScheme=0")
    assert _bright(light["ground"]) > 240 > 100 > _bright(light["ink"])
    assert _bright(dark["ground"]) < 40 < 200 < _bright(dark["ink"])


def _bright(colour: str) -> float:
    """The mean of red, green and blue, 0 to 255."""
    parts = [float(part) for part in re.findall(r"\d+", colour)[:3]]
    return sum(parts) / 3


def test_what_is_cut_off_is_seen(look):
    """The script that looks can find fault."""
    found = look(800, style="svg { font-size: 40px !important; } h2 { width: 90rem; }")
    assert len(found["cut"]) > 8 and found["width"] > found["window"]
