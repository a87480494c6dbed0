"""What vLLM's mHC code stands on, replaced: PyTorch, the GPU's driver, AITER, TileLang, and every part of vLLM that has no say in the choice.

The modules in ``REAL`` are vLLM's own files, run as they are. Everything else that they import is a stand-in that answers any question with another
stand-in; the few answers that decide something (is there an AITER, which GPU is it) are those of the ``Machine``. PyTorch's operators are recorded and
compute nothing.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, Self

REAL = (
    "vllm.envs",
    "vllm._aiter_ops",
    "vllm.platforms.rocm",
    "vllm.utils.import_utils",
    "vllm.model_executor.custom_op",
    "vllm.model_executor.layers.mhc",
    "vllm.models.deepseek_v4.amd.model",
    "vllm.models.deepseek_v4.amd.mtp",
)
OURS = "kiln_vllm_mhc_switch"


@dataclass(frozen=True)
class Machine:
    """A machine as vLLM sees it. ``aiter`` is "no", "yes", or "old": one from before the fused post+pre and the norm."""

    aiter: str
    tilelang: bool
    arch: str


class Answers:
    """Answers whatever is asked of it, with one more of its kind."""

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Answers()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A decorator gives back what it decorates.
        return (
            args[0]
            if len(args) == 1 and not kwargs and callable(args[0]) and hasattr(args[0], "__name__")
            else Answers()
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __instancecheck__(self, instance: Any) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getitem__(self, key: Any) -> Any:
        return Answers()

    def __setitem__(self, key: Any, value: Any) -> None: ...
    def __contains__(self, key: Any) -> bool:
        return False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None: ...
    def _same(self, *others: Any) -> Any:
        return Answers()

    __or__ = __ror__ = __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __floordiv__ = __truediv__ = _same

    def _no(self, *others: Any) -> bool:
        return False

    __lt__ = __gt__ = __le__ = __ge__ = _no


class Tensor(Answers):
    """A tensor of which only the shape is kept."""

    def __init__(self, *shape: int) -> None:
        super().__init__(shape=shape)

    def unsqueeze(self, at: int) -> Tensor:
        place = at % (len(self.shape) + 1)
        return Tensor(*self.shape[:place], 1, *self.shape[place:])

    def repeat(self, *times: int) -> Tensor:
        return Tensor(*(size * many for size, many in zip(self.shape, times, strict=True)))

    def view(self, *shape: int) -> Tensor:
        rest = 1
        for size in self.shape:
            rest *= size
        for size in shape:
            rest //= size if size != -1 else 1
        return Tensor(*(rest if size == -1 else size for size in shape))

    def flatten(self, start: int = 0) -> Tensor:
        return self.view(*self.shape[:start], -1)

    def mean(self, dim: int) -> Tensor:
        return Tensor(*self.shape[:dim], *self.shape[dim + 1 :])


class Module:
    """``torch.nn.Module``, as far as it is called and walked through."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Attention, experts and norms: what comes in goes out."""
        return x

    def modules(self) -> Iterator[Any]:
        yield self
        for value in vars(self).values():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, Module):
                    yield from one.modules()


class Inner(Module):
    """A part of a layer that has no say in mHC."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.weight, self.variance_epsilon = Answers(data=Answers()), 1e-6

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return next(one for one in [*args, *kwargs.values()] if isinstance(one, Tensor) and len(one.shape) > 1)


@dataclass
class Recorder:
    """The operators that were called, in order; each gives tensors of the right shapes."""

    called: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        def operator(*args: Any, **kwargs: Any) -> Any:
            self.called.append(name)
            given = [one for one in [*args, *kwargs.values()] if isinstance(one, Tensor)]
            streams = next(one for one in given if len(one.shape) == 3)
            rows, many, hidden = streams.shape
            inner = Tensor(rows, hidden)
            post, comb = Tensor(rows, many, 1), Tensor(rows, many, many)
            if name.startswith("mhc_fused_post_pre"):
                return streams, post, comb, inner
            if name.startswith("mhc_pre"):
                return post, comb, inner
            return streams if name.startswith("mhc_post") else inner

        return operator


def _torch(machine: Machine, recorder: Recorder) -> dict[str, dict[str, Any]]:
    def empty(*shape: Any, **_: Any) -> Tensor:
        return Tensor(*(shape[0] if shape and isinstance(shape[0], tuple) else shape))

    nn = {"Module": Module, "Parameter": lambda tensor, **_: tensor}
    properties = SimpleNamespace(gcnArchName=f"{machine.arch}:sramecc+:xnack-", multi_processor_count=256)
    return {
        "torch": {
            "Tensor": Tensor,
            "empty": empty,
            "where": lambda _test, _yes, no: no,
            "ops": SimpleNamespace(vllm=recorder),
            "cuda": Answers(get_device_properties=lambda *_: properties),
        },
        "torch.nn": nn,
        "regex": vars(re),
    }


def _vllm(machine: Machine, recorder: Recorder, version: str) -> dict[str, dict[str, Any]]:
    def layers(count: int, make: Any, prefix: str) -> tuple[int, int, list[Any]]:
        return 0, count, [make(prefix=f"{prefix}.{number}") for number in range(count)]

    asked = {
        f"is_{name}": (lambda name=name: name == "rocm")
        for name in ("rocm", "cuda", "cpu", "tpu", "xpu", "out_of_tree")
    }
    group = Answers(is_first_rank=True, is_last_rank=True, world_size=1)
    parts = ("layernorm", "activation", "linear", "logits_processor", "vocab_parallel_embedding", "fused_moe")
    inner = dict.fromkeys(
        (
            "RMSNorm",
            "SiluAndMul",
            "ReplicatedLinear",
            "VocabParallelEmbedding",
            "ParallelLMHead",
            "FusedMoE",
            "LogitsProcessor",
        ),
        Inner,
    )
    return {
        "vllm": {"__version__": version},
        "vllm.platforms": {"current_platform": Answers(device_type="cuda", **asked)},
        "vllm.config": {
            "get_cached_compilation_config": lambda: SimpleNamespace(
                enabled_custom_ops=set(), disabled_custom_ops=set(), custom_ops=["none"], mode=0
            )
        },
        "vllm.config.utils": {"normalize_value": lambda value: value},
        "vllm.distributed": {
            "get_pp_group": lambda: group,
            "get_tensor_model_parallel_world_size": lambda: 1,
            "get_tensor_model_parallel_rank": lambda: 0,
        },
        "vllm.model_executor.models.utils": {
            "make_layers": layers,
            "extract_layer_index": lambda _: 0,
            "maybe_prefix": lambda *names: ".".join(names),
        },
        "vllm.model_executor.kernels.mhc": {
            name: getattr(recorder, name) for name in ("mhc_pre_torch", "mhc_post_torch")
        },
        "vllm.ir": {"ops": Answers(rms_norm=lambda x, *_: x)},
        # --monokernel is off; the switch refuses it (tests/unit/plugins).
        "vllm.models.deepseek_v4.amd.mono_decode": {"MonoDecodeLayer": SimpleNamespace(create=lambda *_: None)},
        **{f"vllm.model_executor.layers.{part}": inner for part in parts},
    }


def _libraries(machine: Machine) -> dict[str, dict[str, Any]]:
    """AITER's functions, with the parameters that vLLM looks for in them."""
    if machine.aiter == "no":
        return {}

    def old(residual: Any) -> None: ...
    def new(residual: Any, norm_weight: Any = None, norm_eps: float = 0.0) -> None: ...

    functions = {"mhc_pre": old} if machine.aiter == "old" else {"mhc_pre": new, "mhc_fused_post_pre": new}
    return {"aiter": {}, "aiter.ops": {}, "aiter.ops.mhc": {**functions, "__getattr__": _lacking}}


def _lacking(name: str) -> Any:
    raise AttributeError(name)


@dataclass
class World(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A fresh vLLM of one release on one machine, importable while it is entered."""

    folder: Path
    version: str
    machine: Machine
    recorder: Recorder = field(default_factory=Recorder)
    # Stand-ins for modules of REAL too, where their files are not at hand.
    extra: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known = {
            **_torch(self.machine, self.recorder),
            **_vllm(self.machine, self.recorder, self.version),
            **_libraries(self.machine),
            **self.extra,
        }

    def _real(self, name: str) -> bool:
        return name in REAL and name not in self.extra

    def __enter__(self) -> Self:
        _forget()
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.meta_path[:] = [
            one for one in sys.meta_path if not isinstance(one, World) and type(one).__module__.split(".")[0] != OURS
        ]
        _forget()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        top = name.partition(".")[0]
        if top in ("amdsmi", "aiter", "tilelang") and not self._has(top):
            return None
        ours = top in ("vllm", "torch", "regex", "aiter", "tilelang")
        if not ours and (top == OURS or top in sys.stdlib_module_names or _findable(top)):
            return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=str(self._file(name)))
        if not self._real(name):
            spec.submodule_search_locations = [str(self.folder)] if name == "vllm" else []
        return spec

    def _has(self, library: str) -> bool:
        return {"aiter": self.machine.aiter != "no", "tilelang": self.machine.tilelang}.get(library, False)

    def _file(self, name: str) -> Path:
        return self.folder.joinpath(*name.split(".")[1:]).with_suffix(".py")

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if self._real(name):
            module.__file__ = str(self._file(name))
            exec(_code(self._file(name)), vars(module))  # noqa: S102 - running vLLM's own file is what this is for
            return
        vars(module).update({"__getattr__": partial(self._attribute, name), **self._known.get(name, {})})

    def _attribute(self, module: str, name: str) -> Any:
        """Whatever a stand-in for a module is asked for: the module of that name below it where one is known, else anything."""
        if name.startswith("__"):
            raise AttributeError(name)
        inner = f"{module}.{name}"
        return importlib.import_module(inner) if inner in REAL or inner in self._known else Answers()


_CODE: dict[Path, CodeType] = {}


def _code(path: Path) -> CodeType:
    if path not in _CODE:
        _CODE[path] = compile(path.read_bytes(), str(path), "exec")
    return _CODE[path]


def _findable(top: str) -> bool:
    return any(one.find_spec(top, None) for one in sys.meta_path if not isinstance(one, World))


def _forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("vllm", "torch", "regex", "aiter", "tilelang", OURS):
            del sys.modules[name]
