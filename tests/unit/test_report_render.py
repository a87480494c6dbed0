"""The forms of a report: nothing that a log may hold breaks one, nothing is lost without a word, and a report that is none is refused."""

from __future__ import annotations

import copy
import json
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kiln.levels import LEVELS
from kiln.verify.checks import Outcome, Result, Subject
from kiln.verify.render.annotations import annotations
from kiln.verify.render.common import choices, clean, evidence_text, first_line, shortened, verdict
from kiln.verify.render.evidence import proofs
from kiln.verify.render.html import LEVELS as SPOKEN_OF
from kiln.verify.render.html import html
from kiln.verify.render.junit import junit
from kiln.verify.render.markdown import LIMIT, markdown
from kiln.verify.render.plot import draw, number, read_plot, ticks
from kiln.verify.render.shape import schema, validate
from kiln.verify.render.style import DARK, LIGHT
from kiln.verify.report import judge, make_report

REPORTS = Path(__file__).parents[1] / "golden" / "reports"
PINS = (Path(__file__).parents[1] / "golden" / "toy" / "pins" / "toy.toml").read_text(encoding="utf-8")
HOSTILE = "</pre></details></script><script>alert(1)</script><img src=x onerror=alert(2)> \"' ]]> | ``` \x00\x1b[31m\ud800\u202e %0A\r\n::error::no"

Reported = dict[str, Any]


def report_of(*checks: tuple[str, str, str, Any]) -> Reported:
    """A report with checks given by id, status, summary and evidence, made as the real ones are."""
    subject = SimpleNamespace(
        image=SimpleNamespace(name="toy-serving"),
        built=SimpleNamespace(digest="sha256:" + "a" * 64),
        pins=SimpleNamespace(platform="linux/amd64", stack="toy", overrides={}, allowed=(), sha256="b" * 64),
        lock=SimpleNamespace(sha256="c" * 64),
        workspace=SimpleNamespace(rehearsal=False),
        engine=SimpleNamespace(version="28"),
    )
    results = [
        Result(name, "static", f"{name} holds", Outcome(cast("Any", status), summary, evidence), 0.25)
        for name, status, summary, evidence in checks
    ]
    return make_report(cast("Subject", subject), results, {"app": "2.0"}, "", datetime(2020, 2, 2, tzinfo=UTC))


def suites(report: Reported) -> ET.Element:
    """The JUnit form, parsed: that it can be is half of what the tests ask."""
    return ET.fromstring(junit(report).encode("utf-8"))  # noqa: S314 - written a moment ago


def every_form(report: Reported) -> dict[str, str]:
    return {
        "junit": junit(report),
        "markdown": markdown(report),
        "annotations": "\n".join(annotations(report, PINS, "pins/toy.toml")),
        "html": html(report),
    }


TEXT = st.text(st.characters(exclude_categories=()), max_size=60) | st.sampled_from([HOSTILE, "", "|", "\\|", "a\r\nb"])
SCALARS = TEXT | st.none() | st.booleans() | st.integers() | st.floats()
EVIDENCE = st.dictionaries(
    TEXT,
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
    ),
    max_size=4,
)


ELEMENTS = (
    "html|head|meta|title|link|style|body|header|main|footer|section|h1|h2|h3|h4|p|div|span|strong|b|a|code|pre|mark|ul|li|dl|dt|dd"
    "|table|thead|tbody|tr|th|td|details|summary|figure|figcaption|svg|g|path|text"
)


class Page(HTMLParser):
    """What a browser would make of a page, as far as the tests ask: elements, ids, addresses, and whether every element is closed."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.names: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.append((name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "action", "data", "xlink:href", "srcset", "poster"):
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check_page(text: str) -> Page:
    """Everything that holds for any page, whatever is in the report."""
    page = Page(text)
    assert [name for name in page.names if not re.fullmatch(ELEMENTS, name)] == []
    assert len(page.ids) == len(set(page.ids))
    assert all(reference == "data:," or reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    assert [name for name, _ in page.attributes if name.startswith("on") or name == "style"] == []
    assert {value for name, value in page.attributes if name == "aria-labelledby"} <= set(page.ids)
    assert not re.search(r"url\(|@import|javascript:", text.partition("<style>")[2].partition("</style>")[0])
    assert '<html lang="en">' in text
    assert "default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;; img-src data:" in text
    assert page.names.count("h1") == page.names.count("title") - page.names.count("figure") * 2 == 1
    return page


@given(TEXT, EVIDENCE, st.sampled_from(["pass", "fail", "error", "skip"]))
def test_nothing_that_a_check_saw_breaks_the_xml(text: str, evidence: Reported, status: str) -> None:
    report = report_of(("one", status, f"said {text}", evidence), ("two", "pass", "fine", {}))
    root = suites(report)
    assert [case.get("name") for case in root.iter("testcase")] == ["one", "two"]
    (case, _) = root.iter("testcase")
    assert [child.tag for child in case if child.tag != "system-out"] == {
        "pass": [],
        "fail": ["failure"],
        "error": ["error"],
        "skip": ["skipped"],
    }[status]


@given(TEXT, TEXT, EVIDENCE)
def test_nothing_that_a_check_saw_breaks_the_table(text: str, about: str, evidence: Reported) -> None:
    report = report_of(("one", "fail", f"said {text}", evidence), ("two", "pass", text + ".", {}))
    report["checks"][0]["about"] = about
    written = markdown(report)
    written.encode("utf-8")
    table = written.split("| --- | --- | ---: | --- |\n")[1].split("\n\n")[0].strip("\n").split("\n")
    assert len(table) == 2
    assert all(row.count("|") == 5 and row.startswith("| ") and row.endswith(" |") for row in table)
    rest = written.split("\n\n", 4)[-1]
    assert rest.count("<details>") == rest.count("</details>") == rest.count("<pre>") == rest.count("</pre>") == 1
    allowed = {"<details>", "</details>", "<summary>", "</summary>", "<pre>", "</pre>", "<br>"}
    assert set(re.findall(r"<[^>]*>", written)) <= allowed


@given(TEXT, TEXT, EVIDENCE)
def test_nothing_that_a_check_saw_breaks_the_page(text: str, about: str, evidence: Reported) -> None:
    report = report_of(("one", "fail", f"said {text}", evidence), ("two", "pass", text + ".", {"labels": evidence}))
    report["checks"][0]["about"] = about
    report["chosen"]["overrides"] = {text: about}
    check_page(html(report, others=[report]))


@given(TEXT, TEXT)
def test_a_workflow_command_is_one_line_with_one_message(text: str, about: str) -> None:
    report = report_of(("one", "fail", f"said {text}", {}), ("two", "error", about + ".", {}))
    lines = annotations(report, PINS, "pins/a,b:c%.toml")
    assert len(lines) == 2
    for line in lines:
        assert not re.search(r"[\r\n\x00-\x08\x1b]", line)
        head, _, data = line.removeprefix("::").partition("::")
        assert re.fullmatch(r"error file=pins/a%2Cb%3Ac%25.toml,line=\d+,title=(one|two)", head)
        assert all(rest in ("25", "0D", "0A") for rest in (piece[:2] for piece in data.split("%")[1:]))


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=10))
def test_any_document_is_judged_without_a_crash(document: Any) -> None:
    assert validate(document) != []
    report = json.loads((REPORTS / "passed.json").read_text(encoding="utf-8"))
    for key in report:
        assert validate({**report, key: document}) != [] or key in ("model", "stack") or document == report[key]


@pytest.mark.parametrize("name", ["passed", "failed", "both"])
def test_the_golden_pages_are_sound(name: str) -> None:
    check_page((REPORTS / f"{name}.html").read_text(encoding="utf-8"))


def test_hostile_text_is_shown_and_not_obeyed() -> None:
    forms = every_form(report_of(("one", "fail", HOSTILE, {"log": HOSTILE, HOSTILE: [HOSTILE, {"x": HOSTILE}]})))
    page = check_page(forms["html"])
    assert "<script>alert(1)</script>" in "".join(page.text)
    for name in ("html", "markdown", "junit"):
        assert "<script" not in forms[name]
        assert "<img" not in forms[name]
    for form in forms.values():
        assert not re.search(r"[\x00\x1b\ud800\u202e\r]", form)


def test_the_forms_change_nothing_and_are_the_same_each_time() -> None:
    report = report_of(("one", "fail", "no", {"a": [1, {"b": None}]}), ("two", "pass", "yes", {}))
    before = copy.deepcopy(report)
    assert every_form(report) == every_form(copy.deepcopy(report))
    assert report == before


def test_a_summary_without_a_visible_character_is_no_crash() -> None:
    every_form(report_of(("one", "fail", "\x00\n ", {}), ("two", "skip", "", {})))


# The verdict


@pytest.mark.parametrize(
    "statuses", [(), ("pass",), ("pass", "skip"), ("skip",), ("pass", "error"), ("pass", "error", "fail"), ("fail",)]
)
def test_the_verdict_is_that_of_the_command_line(statuses: tuple[str, ...]) -> None:
    report = report_of(*((f"check.{n}", status, "said", {}) for n, status in enumerate(statuses)))
    try:
        judge(report, "the report")
        good = True
    except Exception:  # noqa: BLE001 - which of the two errors it is, other tests ask
        good = False
    assert (verdict(report).status == "pass") is good
    assert verdict(report).word in html(report)
    assert verdict(report).word in markdown(report)
    assert bool(annotations(report, PINS, "pins/toy.toml")) is not good


def test_what_was_chosen_is_said_where_it_is_seen() -> None:
    report = report_of(("one", "pass", "fine", {}))
    assert choices(report) == []
    report["chosen"] = {"overrides": {"app": "1.9"}, "allowed_advisories": ["bad-one"], "rehearsal": True}
    assert len(choices(report)) == 3
    for form in (html(report), markdown(report)):
        assert "app was overridden: 1.9" in form
        assert "bad-one" in form
        assert "stand-ins" in form
    properties = {p.get("name"): p.get("value") for p in suites(report).iter("property")}
    assert (properties["overrides"], properties["rehearsal"]) == ("app=1.9", "true")


# JUnit


def test_the_suite_names_the_image_by_its_digest() -> None:
    suite = suites(report_of(("one", "fail", "a\nb", {"x": 1}), ("two", "skip", "why", {}))).find("testsuite")
    assert suite is not None
    assert suite.get("name") == "toy-serving@sha256:" + "a" * 64
    assert [suite.get(key) for key in ("tests", "failures", "errors", "skipped", "time")] == [
        "2",
        "1",
        "0",
        "1",
        "0.500",
    ]
    case = suite.findall("testcase")[0]
    assert (case.get("classname"), case.get("name"), case.get("time")) == ("static", "one", "0.250")
    failure = case.find("failure")
    assert failure is not None
    assert failure.get("message") == "a"
    assert (failure.text or "").startswith("a\nb\n")
    assert case.findtext("system-out") == "x: 1"


def test_long_evidence_is_trimmed_and_keeps_its_end() -> None:
    report = report_of(("one", "fail", "no", {"log": "first\n" + "x" * 1_000_000 + "\nlast words"}))
    out = suites(report).findtext(".//system-out") or ""
    assert len(out) < 17_000
    assert "first" in out
    assert out.endswith("last words")
    assert re.search(r"\d+ characters left out", out)


# Markdown


@pytest.mark.parametrize(
    ("checks", "size", "limit"), [(30, 100_000, LIMIT), (4_000, 400, LIMIT), (40, 5_000, 20_000), (3, 90_000, 8_000)]
)
def test_a_step_summary_keeps_to_its_limit_and_says_what_was_cut(checks: int, size: int, limit: int) -> None:
    report = report_of(*((f"check.{n}", "fail", "ä" * size, {"log": "ö<" * size}) for n in range(checks)))
    written = markdown(report, limit=limit)
    assert len(written.encode("utf-8")) <= limit
    assert "left out" in written
    assert written.count("<details>") == written.count("</details>") > 0


def test_the_worst_is_kept_where_there_is_no_room() -> None:
    report = report_of(*((f"fine.{n}", "pass", "ok", {}) for n in range(900)), ("last.one", "fail", "no", {}))
    written = markdown(report, limit=10_000)
    assert "| ✗ fail | last.one |" in written
    assert "checks left out" in written


# Annotations


@pytest.mark.parametrize(
    ("summary", "evidence", "line"),
    [
        ("io.kiln.component.app: expected '2.0', found '1.9'", {}, 'wheels = ["toy-app==2.0"]'),
        ("toy-app: expected '2.0', found '1.9'", {}, 'wheels = ["toy-app==2.0"]'),
        ("Toy_Base: '1.0+cpu' is missing", {}, 'wheels = ["toy-base==1.0+cpu"]'),
        ("tzdata: '1' is missing", {}, 'packages = ["python3", "tzdata"]'),
        ("plugins differ", {}, 'sources = ["plugins/toy-plugin"]'),
        ("wrong", {"component": "needs"}, 'dependencies-of = "app"'),
        (
            "wrong",
            {"seen": [{"package": "x"}], "inner": {"package": ["nothing", "python3"]}},
            'packages = ["python3", "tzdata"]',
        ),
        ("wrong", {"found": {"app": "1.9"}}, 'wheels = ["toy-app==2.0"]'),
        ("nothing that the pins name", {}, PINS.splitlines()[0]),
    ],
)
def test_an_annotation_points_at_the_line_that_decides(summary: str, evidence: Any, line: str) -> None:
    (command,) = annotations(report_of(("one", "fail", summary, evidence)), PINS, "pins/toy.toml")
    assert f",line={PINS.splitlines().index(line) + 1}," in command


@pytest.mark.parametrize(
    ("stack", "name", "section", "begins"),
    [
        ("dsv4-mhc", "aiter", "[components.aiter]", "ref = "),
        ("dsv4-mhc", "torch", "[components.torch]", "ref = "),
        ("dsv4-mhc", "amd-smi", "[components.amd-smi]", "recipe = "),
        ("dsv4-mhc", "tokenizers", "[components.vllm-needs]", '    "tokenizers>='),
        ("dsv4-mhc", "libopenmpi-dev", "[ubuntu]", '    "ca-certificates"'),
        ("cpu", "vllm", "[components.vllm]", "wheels = "),
        ("cpu", "usr-is-merged", "[debian]", "packages = "),
    ],
)
def test_the_lines_of_the_real_pins_are_found(project: Path, stack: str, name: str, section: str, begins: str) -> None:
    text = (project / "pins" / f"{stack}.toml").read_text(encoding="utf-8")
    lines = text.splitlines()
    start = lines.index(section)
    expected = next(n for n, line in enumerate(lines[start:], start + 1) if line.startswith(begins))
    report = report_of(("one", "fail", f"{name}: expected '1', found '2'", {}))
    (command,) = annotations(report, text, f"pins/{stack}.toml")
    assert f",line={expected}," in command


def test_serving_points_at_the_verify_table_where_the_pins_have_one() -> None:
    report = report_of(("serve.default.answers", "error", "nobody answers", {}))
    report["checks"][0]["level"] = "generate"
    (command,) = annotations(report, "schema = 1\n\n[verify]\nx = 1\n", "pins/toy.toml")
    assert ",line=3," in command
    assert "::could not look: nobody answers" in command


def test_the_worst_ten_and_how_many_more() -> None:
    report = report_of(
        *((f"error.{n}", "error", "no", {}) for n in range(8)),
        *((f"fail.{n}", "fail", "no", {}) for n in range(5)),
        ("skipped", "skip", "why", {}),
    )
    lines = annotations(report, PINS, "pins/toy.toml")
    assert len(lines) == 11
    assert [line.split("title=")[1].split(":")[0] for line in lines[:5]] == [f"fail.{n}" for n in range(5)]
    assert lines[10] == "::notice title=kiln verify::3 more: error.5, error.6, error.7"
    assert not any("skipped" in line for line in lines)


# Plots


PLOT = {
    "title": "Time <b>",
    "x": {"label": "tokens", "log": True},
    "y": {"label": "µs", "log": False},
    "series": [
        {"name": "fused", "points": [[1, 2.5, 2, 3], [10, 3], [100, 9.5, None, None]]},
        {"name": "unfused", "points": [[1, 4], [0, 3], [math.nan, 1], ["x", 1], [1], [5, True]]},
    ],
}


def test_a_plot_is_drawn_with_marks_error_bars_a_legend_and_its_numbers() -> None:
    plot = read_plot(PLOT)
    assert plot is not None
    assert [len(one.points) for one in plot.series] == [3, 1]
    assert plot.left_out == 5
    text = html(report_of(("one", "pass", "fine", {"deep": {"plot": PLOT}, "plot": PLOT})))
    page = check_page(text)
    assert page.names.count("figure") == 2
    assert page.names.count("svg") == 2 * (2 + 2)
    assert text.count('class="bar"') == 4
    assert "5 points cannot be drawn" in text
    assert "nan" not in text.lower().split("<svg", 1)[1].split("</svg>")[0]


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        {**PLOT, "title": 1},
        {**PLOT, "x": {}},
        {**PLOT, "series": "none"},
        {**PLOT, "series": []},
        {**PLOT, "series": [1]},
        {**PLOT, "series": [{"name": "a", "points": []}]},
        {**PLOT, "series": [{"name": "a", "points": [[-1, 1], [math.inf, 1], [1e300, 1]]}]},
    ],
)
def test_what_is_no_plot_is_shown_as_it_is(broken: Any) -> None:
    assert read_plot(broken) is None
    page = check_page(html(report_of(("one", "pass", "fine", {"plot": broken}))))
    assert "figure" not in page.names


NUMBERS = st.floats() | st.integers() | st.none() | st.text(max_size=2)


@given(st.lists(st.lists(NUMBERS, max_size=5), max_size=6), st.booleans(), st.booleans())
def test_any_numbers_can_be_drawn_inside_the_picture(points: Any, x: bool, y: bool) -> None:
    plot = read_plot(
        {
            "title": "t",
            "x": {"label": "x", "log": x},
            "y": {"label": "y", "log": y},
            "series": [{"name": "s", "points": points}],
        }
    )
    if plot:
        drawn = draw(plot, "p")
        assert not re.search(r"\b(nan|inf)\b", drawn)
        for place in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", drawn):
            assert all(-1 <= float(value) <= 721 for value in place)


@given(st.floats(1e-90, 1e90), st.floats(1.0001, 1e9), st.booleans(), st.integers(2, 10))
def test_ticks_are_few_and_between_the_bounds(low: float, factor: float, log: bool, most: int) -> None:
    high = low * factor
    found = ticks(low, high, log, most)
    assert len(found) <= most + 2
    assert all(low * (1 - 1e-6) <= value <= high * (1 + 1e-6) for value in found)
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (-0.0, "0"), (1e-9, "1e-9"), (65536, "65536"), (1e5, "1e5"), (0.1 + 0.2, "0.3")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


# The page


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_the_colours_have_contrast(theme: dict[str, str]) -> None:
    assert LIGHT.keys() == DARK.keys()
    for name in ("text", "muted", "link", "pass", "fail", "error", "skip"):
        assert min(contrast(theme[name], theme[ground]) for ground in ("ground", "panel")) >= 4.5, name
    assert contrast(theme["text"], theme["proof"]) >= 4.5
    for number_ in range(6):
        assert contrast(theme[f"s{number_}"], theme["ground"]) >= 3


def test_a_status_is_a_word_and_not_a_colour_alone() -> None:
    report = report_of(*((f"c.{status}", status, "said", {}) for status in ("pass", "fail", "error", "skip")))
    text = "".join(Page(html(report)).text)
    for status, sign in {"pass": "✓", "fail": "✗", "error": "!", "skip": "○"}.items():
        assert f"{sign} {status}" in text


@pytest.mark.parametrize(
    ("line", "proof"),
    [
        ("kiln-mhc: path=fused requested=env", "path=fused"),
        ("INFO kiln-mhc: ran path=unfused calls=1", "path=unfused"),
        (
            "[aiter] import [module_mhc] under /x/aiter/jit/module_mhc.so",
            "import [module_mhc] under /x/aiter/jit/module_mhc.so",
        ),
        ("TileLang begins to compile kernel `mhc_fused_post_pre`", "mhc_fused_post_pre"),
        ("finish build [module_mhc], cost 40.5s", "finish build [module_mhc]"),
        ("kiln-mhc: ran path=unproven chosen=fused", ""),
        ("TileLang begins to compile kernel `hc_head_fuse_tilelang`", ""),
        ("kiln-mhc: not active on this platform platform=cuda", ""),
    ],
)
def test_the_lines_that_prove_a_path_are_marked(line: str, proof: str) -> None:
    assert list(proofs({"log": f"before\n{line}\nafter"})) == ([line] if proof else [])
    text = html(report_of(("one", "pass", "fine", {"lines": ["before", line]})))
    marked = re.findall(r"<mark>.*?<strong>(.*?)</strong>.*?</mark>", text)
    assert set(marked) == ({proof} if proof else set())


def test_things_of_one_kind_are_a_table() -> None:
    worst = {"post": {"error": 1e-7, "at": "row 4"}, "comb": {"error": 2e-7, "at": "row 5"}}
    text = html(report_of(("one", "pass", "fine", {"worst": worst})))
    assert '<th scope="col">what</th><th scope="col">error</th><th scope="col">at</th>' in text
    assert "<td>comb</td><td>2e-07</td><td>row 5</td>" in text


def test_every_level_has_its_words_and_an_unknown_one_is_shown_all_the_same() -> None:
    assert tuple(SPOKEN_OF) == LEVELS
    report = report_of(*((f"c.{level}", "pass", "fine", {}) for level in ("new", "generate", "static", "ops")))
    for check in report["checks"]:
        check["level"] = check["id"].removeprefix("c.")
    places = [html(report).index(f">c.{level}<") for level in ("static", "ops", "generate", "new")]
    assert places == sorted(places)


def test_reports_side_by_side_share_a_table() -> None:
    one = report_of(("a", "pass", "fine", {}), ("b", "fail", "no", {}))
    other = report_of(("b", "pass", "fine", {}), ("c", "skip", "why", {}))
    page = check_page(html(one, others=[other, other]))
    text = " ".join("".join(page.text).split())
    assert "At a glance" in text
    assert re.search(r"verdict ?✗ failed ?✓ passed ?✓ passed ?a ?✓ pass ?not looked at ?not looked at ?b ?✗ fail", text)


# Words


def test_text_is_made_harmless() -> None:
    assert clean("\x1b[1;31mred\x1b[0m \x1b]0;title\x07a\x00\r\nb\rc\x85\ud800\u202e\u2066é東🙂") == "red a\nb\ncé東🙂"
    assert first_line("\n  \n one \ntwo", 10) == "one"
    assert shortened("x" * 300, 100) == "x" * 99 + "…"
    assert len(shortened("x" * 3000, 1000)) == 1000


def test_evidence_reads_as_lines() -> None:
    evidence = {"a": 1, "none": [], "log": "x\ny", "list": ["a", 2, None], "things": [{"k": True}, {}]}
    assert evidence_text(evidence, 1000) == (
        "a: 1\nnone: none\nlog:\n  x\n  y\nlist:\n  - a\n  - 2\n  - null\nthings:\n  -\n    k: true\n  - none"
    )


# The shape


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(schema())


def test_what_kiln_writes_is_a_report() -> None:
    report = report_of(("a", "pass", "fine", {"x": [1]}), ("b", "skip", "why", {}))
    assert validate(report) == []
    assert validate(json.loads(json.dumps(report))) == []


def edited(path: str, value: Any) -> Reported:
    report = report_of(
        ("image.labels", "pass", "fine", {"labels": {"io.kiln.lock.sha256": "c" * 64}}), ("b", "fail", "no", {})
    )
    *way, last = path.split(".")
    place: Any = report
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    if value is ...:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return report


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("schema_version", 2, "report.schema_version: 2 is not 1"),
        ("schema_version", True, "report.schema_version: True is not 1"),
        ("chosen", ..., "report: chosen is missing"),
        ("note", "hello", "report: nobody knows 'note'"),
        ("subject.manifest_digest", "toy:latest", "does not match ^sha256:"),
        ("subject.manifest_digest", "sha256:" + "a" * 64 + "\n", "does not match ^sha256:"),
        ("checks", {}, "report.checks: {} is not array"),
        ("checks.1.status", "ok", "report.checks[1].status: 'ok' is none of pass, fail, error, skip"),
        ("checks.1.id", "<b>", "report.checks[1].id"),
        ("checks.1.summary", " ", "report.checks[1].summary"),
        ("summary.pass", 1.5, "report.summary.pass: 1.5 is not integer"),
        ("summary.pass", True, "report.summary.pass: True is not integer"),
        ("timing.seconds", {"image.labels": math.nan, "b": 0}, "report.timing.seconds.image.labels: nan is not number"),
        ("environment.gpu", 1, "report.environment.gpu: 1 is not string or object or array or null"),
        # What has the shape and cannot be.
        ("checks.1.status", "pass", "report.summary.pass: 1, but the checks make 2"),
        ("summary.total", 3, "report.summary.total: 3, but the checks make 2"),
        ("checks.1.id", "image.labels", "report.checks: image.labels is there 2 times"),
        ("checks.1.id", "c", "report.timing.seconds: c is missing"),
        ("checks.1.id", "c", "report.timing.seconds: there is no check 'b'"),
        ("checks", [], "report.checks: there is none"),
        ("timing.seconds", {"image.labels": -1, "b": 0}, "is less than nothing"),
        ("timing.detail", {"x": {}}, "report.timing.detail: there is no check 'x'"),
        ("lock.sha256", "d" * 64, "but image.labels saw"),
    ],
)
def test_a_report_that_was_edited_is_refused(path: str, value: Any, problem: str) -> None:
    assert any(problem in line for line in validate(edited(path, value)))


@pytest.mark.parametrize("document", [None, [], "report", 1, {}, {"checks": []}, {1: 2}])
def test_what_is_no_report_is_refused(document: Any) -> None:
    assert validate(document)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_what_lies_too_deep_is_refused_however_deep() -> None:
    report = report_of(("a", "pass", "fine", {"x": nested(50)}))
    assert validate(report) == []
    for depth in (150, 100_000):
        report["checks"][0]["evidence"] = {"x": nested(depth)}
        assert validate(report) == ["report: something in it lies deeper than 100 levels"]


def test_a_problem_is_said_in_a_line_however_long_the_value_is() -> None:
    problems = validate(edited("stack", "x y" * 1_000_000)) + validate(edited("schema_version", ["x"] * 1_000_000))
    assert [len(problem) < 200 for problem in problems] == [True, True]


def test_a_hundred_problems_are_not_all_listed() -> None:
    problems = validate({str(number_): 1 for number_ in range(100)})
    assert len(problems) == 51
    assert problems[-1] == "63 more"
