"""A device that is not there: tensors that say they are on it, and that refuse what it refuses.

Inside `StrictDevice("mps")` tensors can be moved to `mps` although no such device exists. They
compute on the CPU. Refused, as the real device does: float64 (mps), operations that the installed
torch has no kernel for there, operands on two devices, views as numpy arrays, and more memory than
it has. Faults can be planted. Operations made of others are followed down to kernels; every kernel
that was run is counted.
"""

import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from dispatch_table import EXPLICIT, IMPLICIT, kernel
from planted_faults import Faults, out_of_memory
from strict_backends import chosen_stream, pretend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

_WIDE = (torch.float64, torch.complex128)
_CROSSING = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take operands, or indices, of the CPU too."""
_PLACED = {"empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "clone"}
_PLACED |= {"new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "_to_copy"}
_PLACED |= {"_unsafe_view", "_reshape_alias", "split_with_sizes"}
"""Composite operations that only make a tensor, or a view, where their first one is."""
_MOVES = {"to", "cpu", "cuda", "numpy", "tolist", "pin_memory", "__array__", "__reduce_ex__"}


class StrictTensor(torch.Tensor):
    """A tensor on the device; `held` is the CPU tensor that holds its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "StrictTensor":
        made: StrictTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=inner.requires_grad,
        )
        made.held = inner
        active().hold(made)
        return made

    def __repr__(self, **_: Any) -> str:
        return f"StrictTensor({active().kind}, {tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return active().device if isinstance(args[0], StrictTensor) else torch.device("cpu")
        for name in ("cuda", "mps", "cpu"):
            if func == getattr(torch.Tensor, f"is_{name}").__get__:
                return active().kind == name
        name = getattr(func, "__name__", "")
        if name in _MOVES and isinstance(args[0], StrictTensor):
            return active().move(name, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return active().dispatch(func, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """Makes and moves tensors to the device although torch does not know it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, owner = dict(kwargs or {}), active()
        if kwargs.pop("pin_memory", False):
            owner.pinned += 1
        name = getattr(func, "__name__", "")
        if name in _MOVES and args and isinstance(args[0], torch.Tensor):
            return owner.move(name, args, kwargs)
        if name == "set_" or not owner.is_here(kwargs.get("device")):
            return func(*args, **kwargs)
        owner.refuse_wide(kwargs.get("dtype"))
        kwargs["device"] = "cpu"
        return owner.place(func(*args, **kwargs))


class _Inside(TorchDispatchMode):
    """Tensors that a composite operation makes are on its operands' device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(map(_as_declared, func._schema.arguments, args))
        flat, _ = tree_flatten((args, kwargs or {}))
        made = func(*args, **(kwargs or {}))
        if any(isinstance(value, torch.Tensor) for value in flat):
            return made
        return active().place(made)


@dataclass
class StrictDevice:
    """The pretended device of `kind` (mps or cuda); what ran on it, and what it holds.

    A `lenient` one computes what it should refuse, and notes in `places` who asked for it.
    """

    kind: str
    faults: Faults = field(default_factory=Faults)
    operations: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    composites: Counter[str] = field(default_factory=Counter)
    lenient: bool = False
    places: Counter[str] = field(default_factory=Counter)
    pinned: int = 0
    called: list[tuple[Any, ...]] = field(default_factory=list)
    held_bytes: int = 0
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        self.device = torch.device(self.kind, 0)
        self._holders: Counter[int] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> "StrictDevice":
        _ACTIVE.append(self)
        self._stack.enter_context(pretend(self))
        self._stack.enter_context(_Factories())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stack.close()
        _ACTIVE.remove(self)

    # -- where tensors are -------------------------------------------------------------------

    def is_here(self, device: Any) -> bool:
        """Whether `device`, of any spelling, is this one."""
        return device is not None and torch.device(device).type == self.kind

    def place(self, made: Any) -> Any:
        """Tensors of `made` as tensors on the device."""
        return tree_map_only(
            torch.Tensor, lambda one: one if isinstance(one, StrictTensor) else self._new(one), made
        )

    def _new(self, inner: torch.Tensor) -> StrictTensor:
        self.refuse_wide(inner.dtype)
        return StrictTensor(inner)

    def hold(self, tensor: StrictTensor) -> None:
        """Count the memory behind `tensor` for as long as something uses it."""
        storage = tensor.held.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not self._holders[address]:
            if self.faults.memory is not None and self.held_bytes + size > self.faults.memory:
                raise out_of_memory(self.kind, size, self.held_bytes, self.faults.memory)
            self.held_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        self._holders[address] += 1
        weakref.finalize(tensor, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            self.held_bytes -= size

    def move(self, name: str, args: Any, kwargs: Any) -> Any:
        """Tensor.to and the like, and what only a CPU tensor can be made into."""
        tensor = args[0]
        here = isinstance(tensor, StrictTensor)
        if name == "pin_memory":
            self.pinned += 1
            return tensor
        if name in ("numpy", "__array__", "__reduce_ex__", "tolist"):
            if here and name != "tolist":
                self._stop(
                    TypeError,
                    f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to "
                    "copy the tensor to host memory first.",
                )
            plain: Callable[..., Any] = getattr(torch.Tensor, name)
            return plain(tensor.held if here else tensor, *args[1:], **kwargs)
        target, dtype = self._target(name, args[1:], kwargs, here=here)
        dtype, copy = dtype or tensor.dtype, bool(kwargs.get("copy", False))
        if here or target:  # converted where it is, then copied
            self.refuse_wide(dtype)
        if here and target:
            same = tensor.dtype == dtype and not copy
            return tensor if same else torch.ops.aten._to_copy.default(tensor, dtype=dtype)
        with torch._C.DisableTorchFunction():
            if not here and not target:
                return tensor.to("cpu", dtype, copy=copy)
            moved = (tensor.held if here else tensor).detach().to(dtype, copy=True)
        return self._new(moved) if target else moved

    def _target(
        self, name: str, given: Any, kwargs: Any, *, here: bool
    ) -> tuple[bool, torch.dtype | None]:
        """Whether the result is on this device, and its dtype or None for the tensor's own."""
        if name == "cpu":
            return False, None
        if name == "cuda":
            return True, None
        target, dtype = here, None
        for value in (*given, *kwargs.values()):
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, (str, torch.device)):
                target = self.is_here(value)
            elif isinstance(value, torch.Tensor):
                target, dtype = isinstance(value, StrictTensor), value.dtype
        return target, dtype

    # -- what runs ---------------------------------------------------------------------------

    def refuse_wide(self, dtype: torch.dtype | None) -> None:
        """TypeError for a dtype that Metal does not know."""
        if self.kind == "mps" and dtype in _WIDE:
            self.refused["float64"] += 1
            self._stop(
                TypeError,
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
                "float64. Please use float32 instead.",
            )

    def dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the operation `func` as the device would."""
        name = func._schema.name.removeprefix("aten::")
        overload = func._schema.overload_name
        self._refuse_mixture(name, (args, kwargs))
        self.refuse_wide(kwargs.get("dtype"))
        kind = kernel(f"{name}.{overload}" if overload else name, self.kind)
        if kind is None or name in self.faults.missing:
            self._refuse(name, overload)
        if kind == IMPLICIT:
            return func.decompose(*args, **kwargs)
        if kind == EXPLICIT and name not in _PLACED and not _aliases(func):
            key = "CompositeExplicitAutograd"
            if not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
                key = "CompositeExplicitAutogradNonFunctional"
            if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
                self.composites[name] += 1
                with _Inside():
                    return func._op_dk(getattr(torch._C.DispatchKey, key), *args, **kwargs)
        self.operations[name] += 1
        return self._run(func, name, args, kwargs)

    def _run(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        unwrap = lambda one: one.held if isinstance(one, StrictTensor) else one  # noqa: E731
        inner_args, inner_kwargs = tree_map_only(torch.Tensor, unwrap, (args, kwargs))
        stream = chosen_stream()
        if stream is not None and name == "copy_" and True in (*args[2:], *kwargs.values()):
            stream.defer(lambda: func(*inner_args, **inner_kwargs))
            return args[0]
        made = func(*inner_args, **inner_kwargs)
        self.faults.plant(name, inner_args, made)
        written = _written(func, args, kwargs)
        if written is not None:
            return written
        return self.place(made)

    def _refuse_mixture(self, name: str, given: Any) -> None:
        flat, _ = tree_flatten(given)
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        foreign = [one for one in tensors if not isinstance(one, StrictTensor) and one.dim()]
        crossing = name in _CROSSING and isinstance(tensors[0], StrictTensor)
        if foreign and not crossing and name != "copy_":
            self.refused["two devices"] += 1
            self._stop(
                RuntimeError,
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{self.device} and cpu! (when computing {name})",
            )

    def _refuse(self, name: str, overload: str) -> None:
        self.refused[name] += 1
        full = f"{name}.{overload}" if overload else name
        self._stop(
            NotImplementedError,
            f"The operator 'aten::{full}' is not currently implemented for the "
            f"{self.kind.upper()} device.",
        )

    def _stop(self, kind: type[Exception], message: str) -> None:
        if not self.lenient:
            raise kind(message)
        for frame in reversed(traceback.extract_stack()):
            if "globe_stream" in frame.filename and "helpers" not in frame.filename:
                place = frame.filename.rsplit("globe_stream/", 1)[1]
                self.places[f"{place}:{frame.lineno} {frame.line} [{message[:60]}]"] += 1
                return


_ACTIVE: list[StrictDevice] = []


def active() -> StrictDevice:
    """The device that is pretended now."""
    return _ACTIVE[-1]


def _as_declared(argument: Any, value: Any) -> Any:
    """A number in place of an operand, which torch unwraps on the way here, as a tensor again."""
    if str(argument.type) == "Tensor" and isinstance(value, (int, float)):
        return torch.tensor(value)
    return value


def _aliases(func: Any) -> bool:
    """Whether the operation gives a view of an operand, or writes to one."""
    return any(value.alias_info is not None for value in func._schema.returns)


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """The operands that the operation writes to and returns, or None."""
    returned = [value.alias_info for value in func._schema.returns]
    if not returned or any(alias is None or not alias.is_write for alias in returned):
        return None
    found = [
        args[place] if place < len(args) else kwargs.get(given.name)
        for place, given in enumerate(func._schema.arguments)
        if given.alias_info is not None and given.alias_info.is_write
    ]
    return found[0] if len(returned) == 1 else tuple(found)


@contextmanager
def strict(kind: str, *, lenient: bool = False, **faults: Any) -> Iterator[StrictDevice]:
    """`StrictDevice(kind)` with these faults, entered."""
    with StrictDevice(kind, Faults(**faults), lenient=lenient) as device:
        yield device
