"""Which mHC path a ROCm server took, judged by its whole log: AITER's ``module_mhc`` or TileLang's kernels, worker by worker.

No log line of vLLM v0.22 to v0.33 names the chosen backend, so the proof comes from AITER and TileLang themselves:

* ``import [module_mhc] under …/module_mhc.so``: once a process, when it first calls the module; every worker does in vLLM's profile run, before the
  API answers. The line is the same for a prebuilt module and for one that was just compiled (``aiter/jit/core.py``, ``get_module_custom_op``).
* ``start build [module_mhc]``, ``finish build [module_mhc], cost 40.5s``, ``waiting for baton release at …``, ``failed jit build [module_mhc]``: the
  module was compiled when it was needed (``aiter/jit/core.py``, ``aiter/jit/utils/file_baton.py``). An image that holds it prebuilt writes none of them.
* ``TileLang begins to compile kernel `mhc_…` ``: only on a real compile, so a kernel out of TileLang's disk cache is silent (``tilelang/jit/kernel.py``,
  0.1.10). ``hc_head_fuse_tilelang`` compiles with either path: hc_head is TileLang's in the fork, whatever mHC is.
* What proves nothing and is not looked at: vLLM v0.24 to v0.29 say that they warm up "mHC TileLang kernels" with AITER's path too
  (``vllm/model_executor/warmup/deepseek_v4_mhc_warmup.py``); ``type hints mismatch, override to -->`` is harmless.

Where a line can't be there, its absence is no finding: the outcome then is an error (could not look), never a pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kiln.verify.checks import Outcome
from kiln.verify.logs import PROCESSES, RANK, Kind, Reader, pieces

Verdict = tuple[Literal["pass", "fail", "error"], str]
Setting = Literal["aiter", "tilelang"]
Cache = Literal["empty", "known", "unknown"]

_COST = re.compile(r"cost ([0-9]+(?:\.[0-9]+)?)")
_KILN_PATH = re.compile(r"\bpath=(\S+)")
# What the plugin writes when a model is built, in every worker.
_KILN_BUILT = re.compile(r"kiln-mhc: path=(\S+)")
_ON = ("1", "true", "yes", "on")
_PREBUILT = re.compile(r"/(?:dist|site)-packages/aiter/jit/module_mhc\.so$")


@dataclass(frozen=True)
class Worker:
    """What one process wrote about mHC: paths that it imported the module from, build lines, TileLang kernels compiled, lines of Kiln's plugin.

    ``name`` is as the log has it ("Worker_TP0 pid=41"), or "" for lines that name no process. ``at`` has the line number of each entry by its kind.
    """

    name: str
    imported: tuple[str, ...] = ()
    builds: tuple[str, ...] = ()
    tilelang: tuple[str, ...] = ()
    kiln: tuple[str, ...] = ()
    at: tuple[tuple[Kind, int], ...] = ()

    def first(self, kind: Kind) -> int:
        """The number of the first line of that kind."""
        return next((number for found, number in self.at if found == kind), 0)

    @property
    def label(self) -> str:
        """The name without the pid, which is another one on every run."""
        return self.name.split(" pid=")[0] or "a process without a name"


@dataclass(frozen=True)
class Evidence:
    """What a log shows. ``workers`` are the processes that run the model, with or without proof; 0 ``expected_workers`` is unknown.

    ``hidden`` says why a line that is not there proves nothing; ``torn`` are the numbers of lines where a proof was cut; ``swaps`` of those where
    AITER's setup replaced Triton. ``lines`` are the proving ones, with their numbers."""

    workers: tuple[Worker, ...]
    expected_workers: int
    hidden: tuple[str, ...]
    lines: tuple[tuple[int, str], ...]
    cache: Cache = "unknown"
    swaps: tuple[int, ...] = ()
    torn: tuple[int, ...] = ()
    total: int = 0


def read_evidence(
    lines: Iterable[str], environment: Mapping[str, str], *, workers: int = 0, tilelang_cache: Cache = "unknown"
) -> Evidence:
    """What a server's log shows, read line by line (an item may also hold many lines).

    ``environment`` is the server's whole environment, the image's variables included: it decides which lines could be written at all. ``workers`` is
    how many there must be, if that is known; where the log speaks of more, more are expected. ``tilelang_cache`` says whether TileLang's disk cache
    was empty at the start or held the mHC kernels already. The log should be that of a server which has ended: TileLang writes through tqdm, which does
    not flush, so a running worker may hold its last lines back.
    """
    reader = Reader()
    for piece in pieces(lines):
        reader.take(piece)
    # Without a disk cache every kernel is compiled, and says so (tilelang/cache/kernel_cache.py).
    cache: Cache = "empty" if environment.get("TILELANG_DISABLE_CACHE", "").lower() in _ON else tilelang_cache
    return Evidence(
        tuple(_workers(reader)),
        max(workers, reader.expected()),
        tuple(_hidden(environment, cache, reader.crowded)),
        tuple(reader.lines),
        cache,
        tuple(reader.swaps),
        tuple(reader.torn),
        reader.total,
    )


def _workers(reader: Reader) -> list[Worker]:
    """The processes that run the model: those called workers; else, with one GPU an engine, the engines; and whoever left a proof."""
    named = any("Worker" in process.name for process in reader.processes.values())
    kept = [
        (pid, process)
        for pid, process in reader.processes.items()
        if process.at or not named or "Worker" in process.name
    ]
    return sorted(
        (
            Worker(
                f"{process.name} pid={pid}" if pid else "",
                tuple(process.found["imported"]),
                tuple(process.found["builds"]),
                tuple(process.found["tilelang"]),
                tuple(process.found["kiln"]),
                tuple(process.at),
            )
            for pid, process in kept
        ),
        key=lambda worker: [
            int(part) if odd % 2 else part for odd, part in enumerate(re.split(r"([0-9]+)", worker.name))
        ],
    )


def _hidden(environment: Mapping[str, str], cache: Cache, crowded: bool) -> Iterable[str]:
    if environment.get("VLLM_CONFIGURE_LOGGING", "1") == "0":
        yield "VLLM_CONFIGURE_LOGGING=0 leaves the lines of vLLM and its plugins to whoever set it"
    said = environment.get("VLLM_LOGGING_LEVEL", "INFO")
    if said.upper() not in ("DEBUG", "INFO"):
        yield f"VLLM_LOGGING_LEVEL={said} silences the line by which the plugin names the path"
    level = environment.get("AITER_LOG_LEVEL", "INFO")
    if level.upper() in ("WARNING", "ERROR"):  # AITER takes any other value for INFO, with a warning
        yield f"AITER_LOG_LEVEL={level} silences the lines by which AITER tells that it loads or builds module_mhc"
    printing = environment.get("TILELANG_PRINT_ON_COMPILATION", "1")
    if printing.lower() not in _ON:
        yield f"TILELANG_PRINT_ON_COMPILATION={printing} silences TileLang's compile lines"
    if "AITER_JIT_DIR" in environment:  # even an empty value counts
        yield f"AITER_JIT_DIR={environment['AITER_JIT_DIR']} makes AITER import its modules from there and pass the image's prebuilt ones by"
    if cache == "unknown":
        yield "the state of TileLang's disk cache is unknown, and a kernel that comes out of it prints nothing"
    if crowded:
        yield f"the log has more than {PROCESSES} processes; the others were not looked at"


def judge_path(evidence: Evidence, setting: Setting, *, module_path: str = "", named: str = "") -> Outcome:
    """Whether the log proves that every worker took the path of ``setting``, and no worker the other one.

    ``module_path`` is where the image's prebuilt ``module_mhc.so`` lies; without it, any ``aiter/jit`` of a Python installation will do. ``named`` is
    what Kiln's plugin must call the path in every worker (``aiter-unfused``); without it, its lines may be missing.
    """
    if not evidence.total:
        return _outcome("error", "could not look: the log is empty", evidence, setting)
    # AITER_JIT_DIR hides nothing of a server that is not to load AITER's module.
    matters = (
        ("AITER_LOG_LEVEL", "the log has")
        if setting == "tilelang"
        else ("AITER_LOG_LEVEL", "the log has", "AITER_JIT_DIR")
    )
    unseen = [line for line in evidence.hidden if line.startswith(matters)]
    wrong = [f"line {number}: AITER's setup replaced Triton while the server ran" for number in evidence.swaps]
    wrong += _contradictions(evidence, setting, module_path)
    if wrong:
        return _outcome("fail", "\n".join([*wrong, *unseen]), evidence, setting)
    if unseen:
        return _outcome("error", f"could not look: {'; '.join(unseen)}", evidence, setting)
    judge: Callable[[Evidence], Verdict] = _aiter if setting == "aiter" else _tilelang
    status, summary = judge(evidence)
    if named and status == "pass":
        status, summary = _plugin(evidence, named, summary)
    return _outcome(status, summary, evidence, setting)


def _plugin(evidence: Evidence, named: str, summary: str) -> Verdict:
    """Whether the plugin called the path ``named`` in every worker: where it did not load, nothing there obeys the switch."""
    if mute := next((line for line in evidence.hidden if line.startswith("VLLM_")), ""):
        return "error", f"could not look: {mute}"
    if evidence.expected_workers > 1 and any(not worker.name for worker in evidence.workers):
        lost = f"{evidence.expected_workers} workers cannot be told apart"
        return "error", f"could not look for the plugin's lines: some name no process, so {lost}"
    silent = []
    for worker in evidence.workers:
        found = {match[1] for line in worker.kiln if (match := _KILN_BUILT.match(line))}
        if other := sorted(found - {named}):
            return "fail", f"{worker.name or worker.label}: the plugin says path={other[0]}, not {named}"
        if not found:
            silent.append(worker.name or worker.label)
    if silent:
        lacking = "no line `kiln-mhc: path=` of theirs, so the plugin did not load there"
        return "fail", f"{', '.join(silent[:16])}: {lacking} (if VLLM_PLUGINS is set, it must name kiln_mhc_switch)"
    return "pass", f"{summary}; the plugin calls it {named}"


def _contradictions(evidence: Evidence, setting: Setting, module_path: str) -> list[str]:
    """What may not be in the log of that setting, a line each, with the place where it first is."""
    found = []
    for worker in evidence.workers:
        name = worker.name or worker.label
        if worker.builds:
            found.append(
                f"{name}, line {worker.first('builds')}: {_built(worker)}: the prebuilt module is missing or was passed by"
            )
        if setting == "tilelang" and worker.imported:
            found.append(
                f"{name}, line {worker.first('imported')}: loaded AITER's {worker.imported[0]}, so the opt-in did not take"
            )
        elif setting == "aiter":
            for path in dict.fromkeys(worker.imported):
                if (path != module_path) if module_path else not _PREBUILT.search(path):
                    wanted = module_path or "a Python installation's aiter/jit"
                    found.append(
                        f"{name}, line {worker.first('imported')}: loaded {path}, which is not the image's prebuilt module ({wanted})"
                    )
            if worker.tilelang:
                kernels = ", ".join(worker.tilelang[:3])
                found.append(
                    f"{name}, line {worker.first('tilelang')}: TileLang compiled {kernels}: its mHC kernels ran, not AITER's"
                )
        for line in worker.kiln:
            way = match[1] if (match := _KILN_PATH.search(line)) else ""
            if any(_other_way(part, setting) for part in way.split(",")):
                wanted = {"aiter": "unfused", "tilelang": "fused"}[setting] if "-" not in way else f"{setting}'s"
                found.append(f"{name}, line {worker.first('kiln')}: the plugin says path={way}, not {wanted}")
    return found


def _other_way(path: str, setting: Setting) -> bool:
    """Whether a path that the plugin names is not the setting's: ``aiter-fused`` names whose kernels, a plain ``fused`` the way alone."""
    makers, named, _ = path.rpartition("-")
    if named:
        return makers != setting or (setting == "tilelang" and path != "tilelang-fused")
    return path == ("fused" if setting == "aiter" else "unfused")


def _built(worker: Worker) -> str:
    costs = [match[1] for line in worker.builds if (match := _COST.search(line))]
    if any(line.startswith("failed") for line in worker.builds):
        return "failed to compile module_mhc when it was needed" + (f", after {costs[0]} s" if costs else "")
    if all(line.startswith("waiting") for line in worker.builds):
        return "waited while another process compiled module_mhc"
    return "compiled module_mhc when it was needed" + (
        f", in {costs[0]} s" if costs else ", and did not finish in this log"
    )


def _aiter(evidence: Evidence) -> Verdict:
    named = [worker for worker in evidence.workers if worker.name]
    nameless = sum(len(worker.imported) for worker in evidence.workers if not worker.name)
    lacking = [worker.name for worker in named if not worker.imported]
    proven = len(_ranks([worker for worker in named if worker.imported])) + nameless
    # A line that names no process is still one process's: with as many lines as workers, every worker wrote one.
    if lacking and nameless >= len(lacking):
        lacking = []
    if lacking or proven < evidence.expected_workers:
        if evidence.torn:
            return (
                "error",
                f"could not look: a proof is cut in line {evidence.torn[0]}, and {proven} of {evidence.expected_workers} workers have a whole one",
            )
        missing = _missing(evidence, lacking, proven)
        return (
            "fail",
            f"{missing}: no line `import [module_mhc]` of theirs among {evidence.total}, so nothing shows that AITER's mHC ran there",
        )
    if not evidence.expected_workers:
        return (
            "error",
            "could not look: the log does not say how many workers there are (no tensor_parallel_size, no world size)",
        )
    if twice := next((worker for worker in named if len(worker.imported) > 1), None):
        return (
            "error",
            f"could not look: {twice.name} loaded module_mhc {len(twice.imported)} times, and a process does so once: is this the log of more than one start?",
        )
    if nameless and proven > evidence.expected_workers:
        return (
            "error",
            f"could not look: {proven} lines `import [module_mhc]` for {evidence.expected_workers} workers: is this the log of more than one start?",
        )
    paths = sorted({path for worker in evidence.workers for path in worker.imported})
    return "pass", f"AITER's mHC in {_all(evidence)}: loaded {paths[0]}, compiled by nobody"


def _tilelang(evidence: Evidence) -> Verdict:
    named = [worker for worker in evidence.workers if worker.name]
    compiled = [worker for worker in evidence.workers if worker.tilelang]
    silent = [worker.name for worker in named if not worker.tilelang]
    if not evidence.expected_workers:
        return (
            "error",
            "could not look: the log does not say how many workers there are (no tensor_parallel_size, no world size)",
        )
    if evidence.torn:
        return "error", f"could not look: line {evidence.torn[0]} is cut, and speaks of AITER's module_mhc"
    if any(not worker.name for worker in compiled) or not named:
        if evidence.expected_workers > 1:
            return (
                "error",
                f"could not look: the lines name no process, so {evidence.expected_workers} workers cannot be told apart",
            )
        silent = [] if compiled else ["the only worker"]
    elif (seen := len(_ranks(named))) < evidence.expected_workers:
        return "fail", f"{_missing(evidence, [], seen)}: not a line of theirs in the log"
    if not silent:
        kernels = sorted({kernel for worker in compiled for kernel in worker.tilelang})
        return (
            "pass",
            f"TileLang's mHC in {_all(evidence)}: compiled {', '.join(kernels)}; nobody loaded AITER's module",
        )
    return _silence(evidence, silent, compiled)


def _silence(evidence: Evidence, silent: list[str], compiled: list[Worker]) -> Verdict:
    """What it means that TileLang compiled no mHC kernel in ``silent``, and nobody loaded AITER's module."""
    who = ", ".join(silent[:8])
    if mute := next((line for line in evidence.hidden if line.startswith("TILELANG_PRINT")), ""):
        return "error", f"could not look: no mHC kernel of TileLang's compiled in {who}, but {mute}"
    if evidence.cache == "known":
        return (
            "pass",
            f"TileLang's mHC in {_all(evidence)}: its cache is known to hold the kernels, and nobody loaded AITER's module",
        )
    if evidence.cache == "unknown":
        return "error", f"cannot tell: no mHC kernel of TileLang's compiled in {who}, but a warm cache prints nothing"
    if compiled:
        return (
            "error",
            f"cannot tell: {compiled[0].name} compiled mHC kernels and {who} did not: from the cache that they share, or not at all",
        )
    return (
        "fail",
        f"no mHC kernel of TileLang's compiled in {who}, though its cache was empty, and nobody loaded AITER's module: neither path ran",
    )


def _ranks(workers: list[Worker]) -> set[str]:
    """Workers by rank, so that one that was started twice does not stand for another; by pid where the name has no rank."""
    ranked = [worker for worker in workers if "Worker" in worker.name] or workers
    return {worker.label if RANK.search(worker.label) else worker.name for worker in ranked}


def _missing(evidence: Evidence, lacking: list[str], proven: int) -> str:
    """Who is missing, by name as far as the names of the others tell: TP0, TP1 and TP3 lack TP2."""
    labels = {worker.label for worker in evidence.workers if worker.name}
    plain = {match[1] for label in labels if (match := re.match(r"(\w+_[A-Z]{2})\d+$", label))}
    absent = []
    if len(plain) == 1 and evidence.expected_workers <= PROCESSES:
        stem = plain.pop()
        absent = [f"{stem}{rank}" for rank in range(evidence.expected_workers) if f"{stem}{rank}" not in labels]
    names = [*lacking, *absent]
    counted = f"{proven} of {evidence.expected_workers or len(labels)} workers"
    return f"{counted}; missing: {', '.join(names[:16])}" if names else counted


def _all(evidence: Evidence) -> str:
    return "the only worker" if evidence.expected_workers == 1 else f"all {evidence.expected_workers} workers"


def _outcome(status: Literal["pass", "fail", "error"], summary: str, evidence: Evidence, setting: Setting) -> Outcome:
    costs = [float(match[1]) for worker in evidence.workers for line in worker.builds if (match := _COST.search(line))]
    shown: dict[str, Any] = {
        "setting": setting,
        "expected": evidence.expected_workers,
        "hidden": list(evidence.hidden),
        "workers": [
            {
                "name": worker.label,
                "imported": list(worker.imported),
                "builds": list(worker.builds),
                "tilelang": sorted(worker.tilelang),
                "kiln": list(worker.kiln),
            }
            for worker in evidence.workers
        ],
    }
    if status != "pass":
        # Where to look; a pass is the same on every run, and pids and line numbers are not.
        shown["lines"] = [f"{number}: {text}" for number, text in evidence.lines]
    return Outcome(status, summary, shown, {"build": max(costs)} if costs else {})
