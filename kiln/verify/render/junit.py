"""JUnit XML (the dialect xunit2) of a report, for CI systems that list tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET  # only written with, never read

from kiln.verify.render.common import Report, clean, evidence_text, first_line, seconds_of, shortened

MESSAGE = 300
TEXT = 8_000
OUTPUT = 16_000
_TAGS = {"fail": "failure", "error": "error", "skip": "skipped"}


def junit(report: Report) -> str:
    """The report as JUnit XML: one suite for the image's digest, one test case a check."""
    subject, chosen, counts = report["subject"], report["chosen"], report["summary"]
    numbers: dict[str, str] = {
        "tests": str(counts["total"]),
        "failures": str(counts["fail"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skip"]),
    }
    name = f"{subject['image']}@{subject['manifest_digest']}"
    seconds = f"{sum(seconds_of(report, check) for check in report['checks']):.3f}"
    root = ET.Element("testsuites", name="kiln verify")
    suite = ET.SubElement(root, "testsuite", {"name": clean(name), "time": seconds, **numbers})
    suite.set("timestamp", clean(report["timing"]["started_at"]))
    properties = ET.SubElement(suite, "properties")
    for key, value in {
        "manifest_digest": subject["manifest_digest"],
        "platform": subject["platform"],
        "pins.sha256": report["pins"]["sha256"],
        "lock.sha256": report["lock"]["sha256"],
        "stack": report["stack"],
        "overrides": ", ".join(f"{name}={ref}" for name, ref in chosen["overrides"].items()),
        "allowed_advisories": ", ".join(chosen["allowed_advisories"]),
        "rehearsal": "true" if chosen["rehearsal"] else "false",
        "model": report["model"],
    }.items():
        ET.SubElement(properties, "property", name=key, value=clean(value))
    for check in report["checks"]:
        suite.append(_case(check, seconds_of(report, check)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(check: Mapping[str, Any], seconds: float) -> ET.Element:
    case = ET.Element("testcase", classname=clean(check["level"]), name=clean(check["id"]), time=f"{seconds:.3f}")
    if check["status"] in _TAGS:
        said = ET.SubElement(case, _TAGS[check["status"]], message=first_line(check["summary"], MESSAGE))
        said.text = shortened(f"{clean(check['summary'])}\n\nwhat should hold: {clean(check['about'])}", TEXT)
    if check["evidence"]:
        ET.SubElement(case, "system-out").text = evidence_text(check["evidence"], OUTPUT)
    return case
