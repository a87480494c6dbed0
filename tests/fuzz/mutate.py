"""Damaged documents: what editors, disks, merges and enemies make of a good one."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from typing import Any

JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 70, 1.5, float("inf"), "", "x", "\x00", "é\u202e\ud7ff", "../../etc/passwd", "sha256:" + "g" * 64,
    "sha256:" + "0" * 64, "a" * 5000, [], {}, [[]], [None], {"": ""}, {"digest": 3}, [{"digest": "sha256:"}], "2026-13-45", "1.0.0+\n",
)  # fmt: skip
WORDS = (
    "=",
    "[",
    "]",
    "[[",
    "{",
    "}",
    '"',
    "'",
    '"""',
    "\\",
    ",",
    "#",
    "\n",
    "\r",
    "\x00",
    "\ufeff",
    "1e999",
    "nan",
    "true",
    "0x",
    "[a.b]",
    "9" * 5000,
)


def damaged_text(random_: random.Random, text: str) -> str:
    """A text with one to six things done to it."""
    for _ in range(random_.randint(1, 6)):
        text = random_.choice(_TEXT)(random_, text)
    return text


def _character(random_: random.Random, text: str) -> str:
    place = random_.randrange(len(text) + 1)
    return text[:place] + random_.choice(WORDS) + text[place + random_.randint(0, 3) :]


def _line(random_: random.Random, text: str) -> str:
    lines = text.split("\n")
    place = random_.randrange(len(lines))
    what = random_.randrange(4)
    if what == 0:
        del lines[place]
    elif what == 1:
        lines.insert(random_.randrange(len(lines)), lines[place])
    elif what == 2:
        other = random_.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    else:
        lines[place] = lines[place][: random_.randint(0, len(lines[place]))]
    return "\n".join(lines)


def _value(random_: random.Random, text: str) -> str:
    found = list(re.finditer(r'"[^"\n]*"|\b\d+\b', text))
    if not found:
        return text
    one, junk = random_.choice(found), random_.choice(JUNK)
    shown = {None: '""', True: "true", False: "false"}.get(junk) if isinstance(junk, bool | None) else None
    if shown is None:
        shown = f'"{junk}"' if isinstance(junk, str) else str(junk).replace("'", '"')
    return text[: one.start()] + shown + text[one.end() :]


def _cut(random_: random.Random, text: str) -> str:
    return text[: random_.randint(0, len(text))] if random_.random() < 0.2 else text


def _deep(random_: random.Random, text: str) -> str:
    if random_.random() > 0.03:
        return text
    place = random_.randrange(len(text) + 1)
    return text[:place] + random_.choice("[{") * 5000 + text[place:]


_TEXT: tuple[Callable[[random.Random, str], str], ...] = (_character, _line, _value, _cut, _deep)


def damaged_table(random_: random.Random, table: Any) -> Any:
    """A JSON document with one to four values exchanged, left out or doubled."""
    table = copy.deepcopy(table)
    for _ in range(random_.randint(1, 4)):
        holder, key = _place(random_, table)
        if holder is None:
            return random_.choice(JUNK)
        what = random_.randrange(4)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, list):
            holder.insert(random_.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        elif what == 2 and isinstance(holder, dict):
            holder[random_.choice(("x", "", "digest", "platform"))] = holder[key]
        else:
            holder[key] = copy.deepcopy(random_.choice(JUNK))
    return table


def _place(random_: random.Random, table: Any) -> tuple[Any, Any]:
    """A container in the document and one of its keys."""
    holder, key = None, None
    while isinstance(table, dict | list) and table and (holder is None or random_.random() < 0.75):
        holder = table
        key = random_.choice(list(table)) if isinstance(table, dict) else random_.randrange(len(table))
        table = table[key]
    return holder, key
