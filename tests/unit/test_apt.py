"""Kiln's apt sources are the machine's own, turned to another Debian release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kiln.apt
from kiln.apt import Apt, _deb, _one_line, _retarget, sources_for
from kiln.errors import FetchError, HostError, ResolveError
from kiln.lockentries import Deb
from kiln.process import Finished

STANZA = """# the main archive
Types: deb deb-src
URIs: http://mirror.example.invalid/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def test_a_stanza_is_turned_to_the_other_suite() -> None:
    assert _retarget(STANZA, "bookworm", "trixie").splitlines() == [
        "Types: deb",
        "URIs: http://mirror.example.invalid/debian",
        "Suites: trixie trixie-updates",
        "Components: main contrib",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg",
    ]


def test_a_security_stanza_is_turned_too() -> None:
    assert (
        "Suites: trixie-security"
        in _retarget(
            STANZA.replace("bookworm bookworm-updates", "bookworm-security"), "bookworm", "trixie"
        ).splitlines()
    )


def test_suites_of_other_releases_are_left_out() -> None:
    assert (
        "Suites: trixie"
        in _retarget(STANZA.replace("bookworm-updates", "sid bookwormish"), "bookworm", "trixie").splitlines()
    )


def test_a_key_in_the_stanza_stays_as_it_is() -> None:
    key = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n Types: no field\n -----END PGP PUBLIC KEY BLOCK-----"
    stanza = STANZA.replace("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg", key)
    assert _retarget(stanza, "bookworm", "trixie").endswith(key)


@pytest.mark.parametrize("word", ["no", "No", "false", "0", "off"])
def test_a_disabled_stanza_stays_disabled(word: str) -> None:
    found = _retarget(f"{STANZA}Enabled: {word}\n", "bookworm", "trixie")
    assert found == "" or f"Enabled: {word}" in found.splitlines()


def test_a_disabled_stanza_is_left_out() -> None:
    assert _retarget(f"{STANZA}Enabled: no\n", "bookworm", "trixie") == ""


@pytest.mark.parametrize(
    "stanza",
    [
        STANZA.replace("deb deb-src", "deb-src"),
        STANZA.replace("bookworm bookworm-updates", "bullseye"),
        "# nothing\n",
        "",
    ],
)
def test_a_stanza_that_is_no_binary_source_of_this_release_is_left_out(stanza: str) -> None:
    assert _retarget(stanza, "bookworm", "trixie") == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "deb http://m.example.invalid/debian bookworm main contrib",
            ["URIs: http://m.example.invalid/debian", "Suites: trixie", "Components: main contrib"],
        ),
        (
            "  deb   http://m.example.invalid/s bookworm-security   main # why",
            ["Suites: trixie-security", "Components: main"],
        ),
        (
            "deb [arch=amd64,arm64 signed-by=/k.gpg trusted=yes lang=en] file:/m bookworm main",
            ["Architectures: amd64 arm64", "Signed-By: /k.gpg", "Trusted: yes"],
        ),
    ],
)
def test_a_line_becomes_a_stanza(line: str, expected: list[str]) -> None:
    stanza = _one_line(line, "bookworm", "trixie").splitlines()
    assert stanza[0] == "Types: deb"
    assert set(expected) <= set(stanza)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "# deb http://m bookworm main",
        "deb-src http://m bookworm main",
        "deb http://m bullseye main",
        "deb http://m bookwormish main",
        "deb cdrom:[Debian GNU/Linux 12 bookworm]/ bookworm main",
        "deb http://m bookworm",
    ],
)
def test_a_line_that_is_no_binary_source_of_this_release_is_left_out(line: str) -> None:
    assert _one_line(line, "bookworm", "trixie") == ""


Write = Callable[[str, str], None]


@pytest.fixture
def etc_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A Debian machine whose /etc/apt is the test's."""
    folder = tmp_path / "etc-apt"
    (folder / "sources.list.d").mkdir(parents=True)

    def write(name: str, text: str) -> None:
        (folder / name).write_text(text)

    monkeypatch.setattr(kiln.apt, "debian_codename", lambda: "bookworm")
    monkeypatch.setattr(kiln.apt.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(kiln.apt, "Path", lambda path: Path(str(path).replace("/etc/apt", str(folder))))
    return write


def test_all_sources_of_the_machine_are_joined(etc_apt: Write) -> None:
    etc_apt(
        "sources.list.d/debian.sources",
        STANZA + "\n" + STANZA.replace("bookworm bookworm-updates", "bookworm-security"),
    )
    etc_apt("sources.list", "deb http://old.example.invalid/debian bookworm main\n# nothing\n")
    etc_apt("sources.list.d/more.list", "deb http://old.example.invalid/debian bookworm main\n")
    etc_apt("sources.list.d/off.sources.disabled", "garbage")
    stanzas = sources_for("trixie").rstrip("\n").split("\n\n")
    assert [line for stanza in stanzas for line in stanza.splitlines() if line.startswith("Suites")] == [
        "Suites: trixie trixie-updates",
        "Suites: trixie-security",
        "Suites: trixie",
    ]
    assert "bookworm" not in sources_for("trixie")
    assert "bookworm" in sources_for("bookworm")


def test_a_machine_without_a_source_is_told_so(etc_apt: Write) -> None:
    etc_apt("sources.list", "# empty\n")
    with pytest.raises(HostError, match="no apt source of this machine offers bookworm"):
        sources_for("trixie")


def test_a_machine_that_is_not_debian_is_told_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kiln.apt, "codename_of", lambda _: None)
    with pytest.raises(HostError, match="KILN_APT_SOURCES"):
        sources_for("bookworm")


def test_a_sources_file_that_is_named_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.sources").write_text(STANZA)
    monkeypatch.setenv("KILN_APT_SOURCES", str(tmp_path / "my.sources"))
    assert sources_for("trixie") == STANZA


def test_a_sources_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILN_APT_SOURCES", str(tmp_path / "missing.sources"))
    with pytest.raises(HostError, match=r"missing\.sources"):
        sources_for("trixie")


def test_a_package_is_read_from_apts_description() -> None:
    stanza = (
        "Package: bash\nVersion: 1:5.2-2\nArchitecture: amd64\nDescription: shell\n continued: here\nFilename: pool/main/b/bash/bash_5.2-2_amd64.deb\nSize: 12\nSHA256: "
        + "a" * 64
    )
    assert _deb(stanza) == Deb("bash", "1:5.2-2", "amd64", "pool/main/b/bash/bash_5.2-2_amd64.deb", "a" * 64, 12)


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    return Apt(tmp_path / "apt", "bookworm", "amd64")


def answer(monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, str]) -> list[list[str]]:
    """Let apt give these answers, one a call; returns the calls."""
    left, calls = list(answers), []

    def run(argv: list[str], **_options: object) -> Finished:
        calls.append([str(word) for word in argv])
        code, output = left.pop(0)
        return Finished(tuple(calls[-1]), code, output)

    monkeypatch.setattr(kiln.apt, "run", run)
    return calls


def test_apt_works_in_folders_of_its_own(apt: Apt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = answer(monkeypatch, (0, ""))
    monkeypatch.setattr(kiln.apt, "sources_for", lambda _suite: STANZA)
    apt.update(frozen=True)
    (argv,) = calls
    assert f"-oDir::State::lists={tmp_path}/apt/lists" in argv
    assert f"-oDir::State::status={tmp_path}/apt/status" in argv
    assert "-oDir::Etc::sourcelist=/dev/null" in argv
    assert (tmp_path / "apt" / "sources.d" / "kiln.sources").read_text() == STANZA


def test_lists_that_do_not_come_are_told_in_apts_words(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, (100, "Get:1 fine\nErr:2 http://mirror.example.invalid bookworm\nE: Failed to fetch\n"))
    monkeypatch.setattr(kiln.apt, "sources_for", lambda _suite: STANZA)
    with pytest.raises(FetchError) as caught:
        apt.update()
    assert caught.value.why == "Err:2 http://mirror.example.invalid bookworm\nE: Failed to fetch"


def test_what_apt_would_install_is_resolved(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    described = (
        "Package: bash\nVersion: 5.2-2\nArchitecture: amd64\nFilename: pool/bash_5.2-2_amd64.deb\nSize: 12\nSHA256: "
        + "a" * 64
    )
    answer(
        monkeypatch,
        (0, "Inst bash (5.2-2 Debian:12/stable [amd64])\nConf bash (5.2-2 Debian:12/stable [amd64])\n"),
        (0, described),
    )
    assert [deb.label for deb in apt.resolve(["bash"])] == ["bash 5.2-2 (amd64)"]


def test_what_is_offered_is_read_from_apts_descriptions(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    described = (
        "Package: bash\nVersion: {}\nArchitecture: amd64\nFilename: pool/bash.deb\nSize: 12\nSHA256: " + "a" * 64
    )
    answer(
        monkeypatch,
        (0, described.format("1") + "\n\n" + described.format("2") + "\n\n"),
        (100, "E: No packages found\n"),
    )
    assert [deb.version for deb in apt.offered(["bash", "gone"])] == ["1", "2"]
    assert apt.offered(["gone"]) == []


def test_lists_that_cannot_be_read_offer_nothing_that_counts(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, (100, "E: The package lists or status file could not be parsed or opened.\n"))
    with pytest.raises(FetchError) as caught:
        apt.offered(["bash"])
    assert "could not be parsed" in caught.value.why


def test_a_package_that_apt_does_not_describe_is_an_error(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, (0, "Inst bash (5.2-2 Debian:12/stable [amd64])\n"), (0, ""))
    with pytest.raises(ResolveError, match=r"bash 5\.2-2"):
        apt.resolve(["bash"])


def test_a_version_that_is_gone_is_named_with_the_way_out(
    apt: Apt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer(monkeypatch, (100, "E: Version '5.2-2' for 'bash' was not found\nE: Unable to locate package tofu\n"))
    with pytest.raises(FetchError) as caught:
        apt.download([Deb("bash", "5.2-2", "amd64", "pool/bash.deb", "a" * 64, 1)], tmp_path / "new")
    assert "bash 5.2-2" in caught.value.why
    assert "tofu" in caught.value.why
    assert "snapshot" in caught.value.fix
