"""A Dockerfile is read as BuildKit reads it, and what is none is refused with its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.dockerfile import Dockerfile, evaluated, instructions, parse_dockerfile, words
from kiln.errors import UnknownLayoutError

EXAMPLE = """\
# syntax=docker/dockerfile:1
ARG BASE_IMAGE=some/image:1.0
ARG BRANCH="8514f051" # release/2.10, don't move
ARG EMPTY
ARG A=1 B="two words"

FROM --platform=linux/amd64 ${BASE_IMAGE} AS base
ARG BRANCH
ARG ARCHS=gfx942;gfx950
ENV ARCHS=${ARCHS} NAME='kept $ARCHS' \\
    # a comment within
    OTHER="x${BRANCH}y"
ENV OLD form of  an ENV

# about the clone
# https://example.org/1
RUN git clone x \\

    && cd x \\
# another comment
    && git checkout ${BRANCH}

from base
ARG ARCHS=gfx90a
run cat <<EOF > /x && echo done
FROM nothing
EOF
WORKDIR /app
"""


@pytest.fixture
def example() -> Dockerfile:
    return parse_dockerfile(EXAMPLE, "Dockerfile.x")


def test_args_have_defaults_lines_and_the_comment_behind_them(example: Dockerfile) -> None:
    assert {name: value.text for name, value in example.args.items()} == {
        "BASE_IMAGE": "some/image:1.0",
        "BRANCH": "8514f051",
        "A": "1",
        "B": "two words",
    }
    branch = example.args["BRANCH"]
    assert (branch.line, branch.note) == (3, "release/2.10, don't move")


def test_a_stage_knows_what_it_is_made_from_and_what_is_set_in_it(example: Dockerfile) -> None:
    stage = example.stage("base")
    assert (stage.base, stage.line) == ("some/image:1.0", 7)
    assert {name: value.text for name, value in stage.variables().items()} == {
        "BRANCH": "8514f051",
        "ARCHS": "gfx942;gfx950",
        "NAME": "kept $ARCHS",
        "OTHER": "x8514f051y",
        "OLD": "form of an ENV",
    }


def test_a_stage_inherits_from_the_stage_below_and_an_env_hides_its_arg(example: Dockerfile) -> None:
    above = example.stages[1]
    assert (above.name, above.base) == ("1", "base")
    assert above.args["ARCHS"].text == "gfx90a"
    assert above.variables()["ARCHS"].text == "gfx942;gfx950"
    assert "A" not in above.variables(), "an ARG above the first FROM is in no stage that does not name it"


def test_a_run_is_one_text_with_the_comments_above_it(example: Dockerfile) -> None:
    run = next(one for one in example.stage("base").instructions if one.keyword == "RUN")
    assert run.text == "git clone x     && cd x     && git checkout ${BRANCH}"
    assert run.comments == ("about the clone", "https://example.org/1")
    assert run.line == 17


def test_what_stands_in_a_here_document_is_no_instruction(example: Dockerfile) -> None:
    run = example.stages[1].instructions[1]
    assert run.text == "cat <<EOF > /x && echo done\nFROM nothing"
    assert len(example.stages) == 2


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("$A", "1"),
        ("${A}$B", "12"),
        ("$NONE", ""),
        ("${NONE:-x}", "x"),
        ("${NONE-x}", "x"),
        ("${E-x}", ""),
        ("${E:-x}", "x"),
        ("${A:+x}", "x"),
        ("${NONE:+x}", ""),
        ("${E+x}", "x"),
        ("${A:?no}", "1"),
        ("${NONE:-${B}z}", "2z"),
        ("'$A'", "$A"),
        ('"$A b"', "1 b"),
        (r"\$A", "$A"),
        (r'"\n\""', r"\n" + '"'),
        ("$(pwd)", "$(pwd)"),
        ("a$", "a$"),
    ],
)
def test_variables_and_quotes_mean_what_they_mean_to_buildkit(word: str, value: str) -> None:
    assert evaluated(word, {"A": "1", "B": "2", "E": ""}) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FROM a\nFORM b\n", "'FORM' is no instruction"),
        ("RUN x\n", "RUN stands above the first FROM"),
        ("FROM\n", "nothing stands behind FROM"),
        ("FROM a AS\n", "is not FROM image AS name"),
        ("FROM a BS c\n", "is not FROM image AS name"),
        ("ARG IMAGE\nFROM ${IMAGE}\n", "is not FROM image AS name"),
        ('ARG A="x\nFROM a\n', "a quote is not closed"),
        ("ARG 1=x\nFROM a\n", "no name of an ARG"),
        ("ARG A=${B\nFROM a\n", "a brace is not closed"),
        ("ARG A=${B#x}\nFROM a\n", "is not known"),
        ("ARG A=${B:?give}\nFROM a\n", "B must be given: give"),
        ("FROM a\nENV A=1 B\n", "is not NAME=value"),
        ("FROM a\nRUN <<EOF\nx\n", "the here-document EOF has no end"),
        ("# escape=`\nFROM a\n", "escape character"),
        ("ARG A=" + "${A:-" * 4000 + "}" * 4000 + "\nFROM a\n", "nested too deep"),
    ],
)
def test_what_is_no_dockerfile_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(UnknownLayoutError, match=r"Dockerfile\.x, line \d") as caught:
        parse_dockerfile(text, "Dockerfile.x")
    assert words in caught.value.why


def test_a_stage_that_is_not_there_is_named(example: Dockerfile) -> None:
    with pytest.raises(UnknownLayoutError, match="no stage 'build_aiter'") as caught:
        example.stage("build_aiter")
    assert caught.value.why == "It has base, 1."


NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(codec="ascii", exclude_characters="\r\n", min_codepoint=32), max_size=20)


@given(st.dictionaries(NAMES, VALUES, min_size=1))
def test_what_is_quoted_is_read_as_it_was(variables: dict[str, str]) -> None:
    quoted = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") for name, value in variables.items()
    }
    lines = "".join(f'ARG {name}="{value}"\n' for name, value in quoted.items())
    found = parse_dockerfile(lines + "FROM scratch\n", "x").args
    assert {name: value.text for name, value in found.items()} == variables


@given(st.lists(st.sampled_from(["a", "b c", "# d", 'e "f"', "$G", "'h", "-i"])), st.integers(0, 3))
def test_a_continued_run_is_the_run_on_one_line(parts: list[str], comments: int) -> None:
    between = "\\\n" + "  # in between\n" * comments
    (found,) = instructions("RUN x" + "".join(f" {between}  && {part}" for part in parts) + "\n")
    (plain,) = instructions("RUN x" + "".join(f"   && {part}" for part in parts) + "\n")
    assert found == plain


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for what in (text, "FROM a\nENV " + text, "ARG X=" + text + "\nFROM a"):
        try:
            parse_dockerfile(what, "x")
        except UnknownLayoutError:
            continue


@given(st.lists(st.text("abc=;/${}", min_size=1, max_size=8)))
def test_words_without_quotes_are_split_at_blanks(parts: list[str]) -> None:
    assert list(words("  ".join(parts))) == parts
