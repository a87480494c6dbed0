"""The path that every release really takes, for every machine, model and setting; and that the page with the table is current."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract import fork, table
from tests.contract.conftest import have
from tests.contract.sources import Release, releases

RELEASES = [one for one in releases() if one.version != "0.21.0"]
_DONE: dict[str, dict[str, Any]] = {}


def results_of(release: Release) -> dict[str, Any]:
    """The cells of a release, run once a session."""
    if release.version not in _DONE:
        _DONE[release.version] = table.run(release)
    return _DONE[release.version]


@pytest.fixture(params=[pytest.param(one, id=one.version) for one in RELEASES])
def release(request: pytest.FixtureRequest) -> Release:
    have(request.param)
    return request.param  # type: ignore[no-any-return]


def cells_of(release: Release) -> list[dict[str, Any]]:
    return [*results_of(release)["rows"], *results_of(release)["old"]]


def test_every_combination_was_run(release: Release) -> None:
    assert len(results_of(release)["rows"]) == 128
    assert table.whole(results_of(release)["rows"])
    assert table.whole(results_of(release)["old"])


def test_no_cell_is_unexplained(release: Release) -> None:
    unexplained = [
        (cell, table.expected(release.version, cell))
        for cell in cells_of(release)
        if table.difference(release.version, cell) == "unexplained"
    ]
    assert unexplained == []


def test_the_plugins_line_names_the_path_that_was_taken(release: Release) -> None:
    spoken = [cell for cell in cells_of(release) if cell["path"] != "refused"]
    assert {"said" in cell for cell in spoken} == {release.supported}
    assert [cell for cell in spoken if cell.get("said", cell["path"]) != cell["path"]] == []
    for cell in spoken:
        named = set(cell["kernels"].split(",")) if release.supported else set()
        # PyTorch's fused operator is its post and pre.
        called = {one.replace("_torch", "_native") for one in cell["called"] if not one.startswith("hc_head")}
        assert not named or named >= called - {"mhc_post_native", "mhc_pre_native"}, cell


def test_the_deferred_hc_post_is_applied_once_in_the_model_and_in_the_drafting_layer(release: Release) -> None:
    for cell in cells_of(release):
        if cell["path"] == "refused" or "native" in cell["path"]:
            continue
        stems = [one.rpartition("_")[0] for one in cell["called"][:-1]]
        draft = [one.rpartition("_")[0] for one in cell["draft"]]
        if cell["path"].endswith("-fused"):
            assert stems == ["mhc_pre", *["mhc_fused_post_pre"] * 3, "mhc_post"], cell
            assert draft == ["mhc_pre", "mhc_fused_post_pre", "mhc_post"], cell
        else:
            assert stems == ["mhc_pre", "mhc_post"] * 4, cell
            assert draft == ["mhc_pre", "mhc_post"] * 2, cell


def test_off_is_what_that_vllm_does_without_the_plugin(release: Release) -> None:
    names = ("aiter", "tilelang", "arch", "hidden", "hc_mult")
    bare = {
        tuple(cell[name] for name in names): (cell["path"], cell["called"], cell["draft"])
        for cell in results_of(release)["bare"]
    }
    off = [cell for cell in results_of(release)["rows"] if cell["switch"] in ("", "0")]
    assert len(off) == 2 * len(bare)
    for cell in off:
        assert (cell["path"], cell["called"], cell["draft"]) == bare[tuple(cell[name] for name in names)]


def test_the_head_is_never_aiters(release: Release) -> None:
    for cell in cells_of(release):
        if cell["path"] != "refused":
            assert cell["called"][-1] == table.head(release.version, cell), cell


def test_a_refusal_says_why(release: Release) -> None:
    for cell in cells_of(release):
        if cell["path"] != "refused":
            continue
        if cell["switch"] == "garbage":
            assert cell["why"].startswith("BadSettingError"), cell
        else:
            words = (
                "on gfx942 (MI300, MI325) they give wrong results" if cell["arch"] == "gfx942" else "finds no tilelang"
            )
            assert words in cell["why"], cell


def test_the_compile_caches_key_has_the_choice(release: Release) -> None:
    keys = results_of(release)["keys"]
    assert keys == ({"": "False", "0": "False", "1": "True"} if release.supported else {"": None, "0": None, "1": None})


def test_the_page_with_the_table_is_current(need_sources: None) -> None:
    document = table.document({one.version: results_of(one) for one in RELEASES})
    assert table.DOCUMENT.read_text(encoding="utf-8") == document, "run `make contract` and look at what changed"


def test_the_forks_page_is_current_and_as_the_facts_say() -> None:
    if not fork.there():
        pytest.skip(
            "the fork's two files are not in .kiln/contract: python -m tests.contract.fork FOLDER takes them from a checkout"
        )
    cells = fork.rows()
    assert [(cell, fork.expected(cell)) for cell in cells if cell["path"] != fork.expected(cell)] == []
    assert fork.DOCUMENT.read_text(encoding="utf-8") == fork.document(cells)


def test_a_cell_that_is_not_what_was_expected_is_unexplained() -> None:
    cell = {"aiter": "yes", "tilelang": True, "arch": "gfx950", "hidden": 4096, "hc_mult": 4, "switch": "1"}
    assert table.difference("0.33.0", {**cell, "path": "tilelang-fused"}) == ""
    assert table.difference("0.33.0", {**cell, "path": "aiter-fused"}) == "unexplained"
    assert table.difference("0.33.0", {**cell, "aiter": "old", "switch": "", "path": "tilelang+aiter-fused"}) == "mixed"
    assert (
        table.difference("0.29.0", {**cell, "aiter": "old", "switch": "", "path": "tilelang+aiter-fused"})
        == "unexplained"
    )
