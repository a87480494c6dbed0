"""What the switch relies on, in the real sources of every release; and whether it would notice if one symbol were gone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.contract.conftest import have
from tests.contract.mutate import mutations
from tests.contract.sources import PROJECT, Release, cached, releases

sys.path.insert(0, str(PROJECT / "plugins" / "vllm-mhc-switch"))
from kiln_vllm_mhc_switch import contract
from kiln_vllm_mhc_switch.errors import UnknownVllmCodeError
from kiln_vllm_mhc_switch.platforms import rocm_source
from kiln_vllm_mhc_switch.platforms.sources import Sources

RELEASES = [pytest.param(one, id=one.version) for one in releases()]
SUPPORTED = [pytest.param(one, id=one.version) for one in releases() if one.supported]


def checked(release: Release, replaced: dict[str, str] | None = None, whole: Sources | None = None) -> Sources:
    """The sources of a release after the plugin's check of them, with some modules replaced."""
    sources = Sources((release.folder,), release.version, replaced or {})
    if whole:
        # What was parsed once needs no second time, but for what is replaced.
        sources._trees.update({name: tree for name, tree in whole._trees.items() if name not in sources.replaced})
    rocm_source.check(sources)
    return sources


@pytest.fixture
def release(request: pytest.FixtureRequest) -> Release:
    have(request.param)
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("release", SUPPORTED, indirect=True)
def test_every_symbol_that_the_switch_relies_on_is_there(release: Release) -> None:
    assert len(checked(release).seen) >= 30


@pytest.mark.parametrize(
    "release", [one for one in RELEASES if one not in SUPPORTED and not one.values[0].supported], indirect=True
)
def test_a_release_from_before_the_aiter_path_is_refused_by_name(release: Release) -> None:
    with pytest.raises(UnknownVllmCodeError, match=rf"HAS_AITER_MHC of vLLM {release.version}"):
        checked(release)


@pytest.mark.parametrize("release", SUPPORTED, indirect=True)
def test_no_symbol_can_go_or_change_its_name_unnoticed(release: Release) -> None:
    whole = checked(release)
    unnoticed, tried = [], 0
    for module, symbol in whole.seen:
        path = release.folder.joinpath(*module.split(".")[1:]).with_suffix(".py")
        for how, text in mutations(path.read_text(encoding="utf-8"), symbol):
            tried += 1
            # Whoever renames everywhere renames methods of that name in other classes too.
            wanted = symbol.rpartition(".")[2] if "everywhere" in how else f"{module}.{symbol}"
            try:
                checked(release, {module: text}, whole)
            except UnknownVllmCodeError as error:
                if wanted in str(error) and f"vLLM {release.version}" in str(error):
                    continue
                unnoticed.append(f"{module}.{symbol} {how}: {error}")
            else:
                unnoticed.append(f"{module}.{symbol} {how}: nothing was said")
    assert not unnoticed, "\n".join(unnoticed)
    assert tried == 3 * len(whole.seen)


@pytest.mark.parametrize("release", SUPPORTED, indirect=True)
def test_a_module_that_is_gone_is_named(release: Release, tmp_path: Path) -> None:
    for module in sorted({module for module, _ in checked(release).seen} - {f"{rocm_source.AMD}.dspark"}):
        sources = Sources((release.folder,), release.version)
        sources._file = lambda name, gone=module, inner=sources._file: None if name == gone else inner(name)  # type: ignore[method-assign]
        with pytest.raises(UnknownVllmCodeError, match=rf"{module} of vLLM {release.version}: the module is not there"):
            rocm_source.check(sources)


@pytest.mark.parametrize("release", RELEASES, indirect=True)
def test_the_cpu_models_flag_is_known_since_there_is_such_a_model(release: Release) -> None:
    if int(release.version.split(".")[1]) >= 30:
        contract.check("cpu", release.folder, release.version)
    else:
        with pytest.raises(UnknownVllmCodeError, match="the module is not there"):
            contract.check("cpu", release.folder, release.version)


def test_the_cache_is_what_was_fetched(need_sources: None) -> None:
    assert all(cached(one) for one in releases())
    assert all(one.kept for one in releases())
