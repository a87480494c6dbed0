"""The page of a report in a real browser: it asks for nothing, fits every window, can be read in both colour schemes, and opens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kiln.verify.ops import judge_operators
from kiln.verify.render.html import html

from .browser import Page, browser, chromium

TESTS = Path(__file__).parents[1]
WIDTHS = (360, 390, 1200)
# The luminance of WCAG 2, of what is written and of the ground that it is written on; colours come as rgb(…) or rgba(…).
CONTRAST = """(() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const found = parts(getComputedStyle(one).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const seen = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    const colour = parts(element.closest("svg") ? style.fill : style.color);
    const [dark, light] = [luminance(colour), luminance(ground(element))].sort((a, b) => a - b);
    seen.push({text: walker.currentNode.data.trim().slice(0, 40), ratio: (light + 0.05) / (dark + 0.05)});
  }
  return seen;
})()"""
OPEN_ALL = """(() => {
  const stuck = [];
  for (const one of document.querySelectorAll("details")) {
    if (!one.open) one.querySelector("summary").click();
    const inside = [...one.children].filter(child => child.tagName !== "SUMMARY");
    if (!one.open || !inside.some(child => child.getBoundingClientRect().height > 0)) stuck.push(one.textContent.slice(0, 80));
  }
  return stuck;
})()"""
WIDER = """(() => {
  const width = document.documentElement.clientWidth;
  const out = [...document.querySelectorAll("body *")].filter(one => one.getBoundingClientRect().right > width + 0.5
    && !one.closest(".wide-content, pre") && one.getClientRects().length);
  return {page: document.documentElement.scrollWidth, window: width, out: out.map(one => one.outerHTML.slice(0, 120))};
})()"""
# Words of a drawing that lie over each other or outside of it.
CROWDED = """(() => {
  const wrong = [];
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const box = svg.getBoundingClientRect();
    if (!box.width) continue;
    const words = [...svg.querySelectorAll("text")].map(one => ({text: one.textContent, box: one.getBoundingClientRect()}));
    words.forEach((one, n) => {
      const {left, right, top, bottom} = one.box;
      if (left < box.left - 1 || right > box.right + 1 || top < box.top - 1 || bottom > box.bottom + 1) wrong.push(one.text + " lies outside");
      for (const other of words.slice(n + 1))
        if (left < other.box.right && other.box.left < right && top < other.box.bottom && other.box.top < bottom)
          wrong.push(one.text + " lies over " + other.text);
    });
  }
  return wrong;
})()"""


def with_operators(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the checks of the operators as a real image has them: their evidence holds plots."""
    for name in ("torch-cpu", "race-cpu"):
        found = judge_operators(json.loads((TESTS / "corpus" / "measured" / f"{name}.json").read_text()), 0)
        check = {
            "id": f"ops.{name}",
            "level": "ops",
            "about": "the operators give what the formula gives",
            "status": found.status,
            "summary": found.summary,
            "evidence": found.evidence,
        }
        report["checks"].append(check)
    return report


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages that are looked at, as files: one report with plots, one that failed, and both on one page."""
    folder = tmp_path_factory.mktemp("pages")
    golden = {
        name: json.loads((TESTS / "golden" / "reports" / f"{name}.json").read_text()) for name in ("passed", "failed")
    }
    passed = with_operators(golden["passed"])
    texts = {
        "passed": html(passed),
        "failed": html(golden["failed"]),
        "both": html(golden["failed"], others=[passed]),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = chromium()
    if program is None:
        message = "no chromium: install Debian's package, or run: make chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with browser(program, tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["passed", "failed", "both"])
def test_a_page_stands_alone_and_can_be_read(
    page: Page, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page.show(pages[name], width, scheme)
    assert page.evaluate(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
    for step in ("as it opens", "with all of it open"):
        room = page.evaluate(WIDER)
        assert (room["page"] <= room["window"] <= width, room["out"]) == (True, []), (step, room)
        words = page.evaluate(CONTRAST)
        assert len(words) > 30
        assert [one for one in words if one["ratio"] < 4.5] == [], step
        assert page.evaluate(CROWDED) == [], step
        if step == "as it opens":
            assert page.evaluate(OPEN_ALL) == []
    assert page.evaluate("document.querySelectorAll('details').length") > 4
    assert page.requests() == [pages[name].as_uri()]
    assert page.complaints() == []


def test_the_plots_are_drawn_once_at_every_width(page: Page, pages: dict[str, Path]) -> None:
    for width, kind in ((1200, "wide"), (360, "narrow")):
        page.show(pages["passed"], width, "light")
        page.evaluate(OPEN_ALL)
        shown = page.evaluate(
            "[...document.querySelectorAll('svg[role=img]')].filter(o => o.getBoundingClientRect().width > 200).map(o => o.classList[0])"
        )
        assert len(shown) >= 3
        assert set(shown) == {kind}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ('<p style="color:#999">pale</p>', "contrast"),
        ('<p><img src="https://example.invalid/x.png" alt=""></p>', "requests"),
        ("<script>nothing()</script>", "complaints"),
        ('<div style="width:5000px">wide</div>', "room"),
        ("<details><summary>empty</summary></details>", "stuck"),
        ('<svg role="img" width="90" height="30"><text y="20">one</text><text y="20">two</text></svg>', "crowded"),
    ],
)
def test_each_of_these_checks_can_fail(
    page: Page, pages: dict[str, Path], tmp_path: Path, fault: str, words: str
) -> None:
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(
        pages["passed"].read_text(encoding="utf-8").replace("</main>", f"{fault}</main>"), encoding="utf-8"
    )
    page.show(spoilt, 390, "light")
    room = page.evaluate(WIDER)
    found = {
        "contrast": any(one["ratio"] < 4.5 for one in page.evaluate(CONTRAST)),
        "room": room["page"] > room["window"] and room["out"] != [],
        "crowded": page.evaluate(CROWDED) != [],
        "stuck": page.evaluate(OPEN_ALL) != [],
        # What the page's own policy refuses is never sent, and the console says so.
        "requests": page.requests() != [spoilt.as_uri()] or page.complaints() != [],
        "complaints": page.complaints() != [],
    }
    assert found[words], found
