"""Reads weights from pickle files (torch's zip archives, M3AE's .pkl) without executing anything in them.

A pickle is a program: it names functions and calls them. Here no name is ever imported. Those that rebuild arrays and
tensors mean functions of this file, which check sizes first; names of the packages in `STANDS_IN` (a train state, an
optimizer, the modules of a TorchScript archive) make inert objects, of which only the arrays they hold are read; any
other name is refused.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from maeclip_jax.errors import UserError

# Top-level packages that checkpoints of these codebases refer to beside the arrays.
STANDS_IN = (
    "__torch__", "_operator", "abc", "absl", "argparse", "chex", "cloudpickle", "collections", "dataclasses", "enum",
    "flax", "functools", "inspect", "jax", "jaxlib", "jaxtyping", "m3ae", "ml_collections", "mlxu", "omegaconf",
    "optax", "pathlib", "torch", "types", "typing", "yacs",
)  # fmt: skip
SETTINGS = ("args", "variant")  # facebookresearch/mae; young-geng/m3ae_public
_NODES = 3_000_000  # containers and leaves; a file with more is not a model but one crafted to exhaust memory
_BUILTINS = (
    "bool", "bytes", "dict", "float", "getattr", "int", "list", "NotImplemented", "object", "property", "str", "tuple",
    "type", "Ellipsis",
)  # fmt: skip


class Stand:
    """Replaces an object of the file: it keeps the constructor's arguments and does nothing."""

    def __new__(cls, *args, **kwargs):  # pickle does not always call __init__
        self = super().__new__(cls)
        self.args, self.fields = args, kwargs
        return self

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        # (attributes, slots) is what objects with slots have as their state.
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.fields.update(part)

    def __call__(self, *args, **kwargs):
        return Stand(*args, **kwargs)

    def __setitem__(self, key, value):
        self.fields[key] = value

    def append(self, value):
        self.args = (*self.args, value)

    def extend(self, values):
        self.args = (*self.args, *values)


class _Dict(dict):
    def __setstate__(self, _):
        """A torch state dict has a `_metadata` attribute with versions."""


class _Dtype:
    """numpy.dtype(word, align, copy), then its state with the byte order."""

    def __init__(self, word, *_):
        self.dtype = dtype_of(word)

    def __setstate__(self, state):
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Ndarray:
    """numpy's `_reconstruct(ndarray, (0,), b"b")`, then its state: nothing is allocated but what the file holds."""

    array: np.ndarray | None = None

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.array = _frombuffer(data, dtype, shape, "F" if fortran else "C")


def dtype_of(word: Any) -> np.dtype:
    """The dtype called `word`; ValueError unless it is numeric."""
    import ml_dtypes

    name = word.__name__ if isinstance(word, type) else word.decode() if isinstance(word, bytes) else str(word)
    dtype = np.dtype(ml_dtypes.bfloat16) if name in ("bfloat16", "E") else np.dtype(name)
    if dtype.kind not in "biufc" and dtype != np.dtype(ml_dtypes.bfloat16):
        raise ValueError(f"it holds an array of {name!r}, which are not numbers")
    return dtype


def _frombuffer(data, dtype: _Dtype, shape, order="C") -> np.ndarray:
    if isinstance(data, str):
        data = data.encode("latin1")  # Python 2 pickles
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise ValueError(f"an array of shape {tuple(shape)} and {dtype.dtype} does not have that many bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _jax_array(function: Callable, args: tuple, state: tuple, *_) -> Any:
    made = function(*args)
    if isinstance(made, _Ndarray):
        made.__setstate__(state)
    return made


_NUMPY = {
    **{f"numpy.{core}.multiarray._reconstruct": _Ndarray for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
    **{f"numpy.{c}.multiarray.scalar": lambda dtype, data: _frombuffer(data, dtype, ()) for c in ("core", "_core")},
    "numpy.ndarray": _Ndarray,
    "numpy.dtype": _Dtype,
    "ml_dtypes.bfloat16": type("bfloat16", (Stand,), {}),
    "jax._src.array._reconstruct_array": _jax_array,
    **{f"{m}._reconstructor": lambda made, *_: made() for m in ("copyreg", "copy_reg")},  # any object, in old protocols
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # bytes as protocol 2 writes them
    "flax.core.frozen_dict.FrozenDict": _Dict,
    "collections.OrderedDict": _Dict,
    **{f"builtins.{t.__name__}": t for t in (set, frozenset, slice, complex, bytearray)},
    "__builtin__.set": set,
    **{
        f"numpy.{word}": type(word, (Stand,), {})
        for word, t in vars(np).items() if isinstance(t, type) and issubclass(t, np.generic)
    },
    **{f"builtins.{word}": type(word, (Stand,), {}) for word in _BUILTINS},
}  # fmt: skip


class _Unpickler(pickle._Unpickler):
    """The Python unpickler: the one in C allocates a memo of 64 GB when a few bytes of a file ask for it."""

    def __init__(self, file: BinaryIO, names: dict[str, Any], storage: Callable | None = None):
        super().__init__(file)
        self.names, self.storage = names, storage

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self.names:
            return self.names[full]
        if module == "torch._utils":  # a stand would lose the tensor silently
            raise ValueError(f"it holds a tensor of a kind that is not read ({name})")
        if module.split(".")[0] in STANDS_IN:
            return type(name, (Stand,), {})
        raise UserError(f"it asks for {full!r}, which does not belong in a weight file; nothing was executed")

    def persistent_load(self, key: Any) -> Any:
        if self.storage is None:
            raise ValueError("it refers to objects outside the file")
        return self.storage(key)


def read_pickle(file: BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays of a pickle of dicts, lists, train states: {names joined by '/': array}, its `settings`).

    ValueError for a file of another kind.
    """
    tree = _Unpickler(file, _NUMPY).load()
    return dict(_arrays(tree, "/")), settings(tree)


_TORCH_DTYPES = {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bfloat16", "Long": "i8", "Int": "i4", "Short": "i2",
    "Char": "i1", "Byte": "u1", "Bool": "?", "ComplexFloat": "c8", "ComplexDouble": "c16",
}  # fmt: skip


def _tensor(storage: np.ndarray, offset: int, size, stride, *_) -> np.ndarray:
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    count = math.prod(size)
    if count == 0:
        return np.empty(size, storage.dtype)
    if min(offset, *size, *stride, 0) < 0 or last >= storage.size or count > storage.size:
        raise ValueError(f"a tensor of shape {size} does not fit into its storage of {storage.size} numbers")
    steps = tuple(s * storage.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


_TORCH = {
    **_NUMPY,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": tuple,
    **{f"torch.{name}Storage": dtype for name, dtype in _TORCH_DTYPES.items()},
}


def read_torch(file: BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors of a zip archive of `torch.save` or TorchScript: {names joined by '.': array}, its `settings`).

    ValueError for a file of another kind.

    Format: github.com/pytorch/pytorch, torch/serialization.py: `<folder>/data.pkl` and one raw file per storage,
    `<folder>/data/<key>`, stored and not compressed.
    """
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in members if name.split("/")[1:] == ["data.pkl"]]
        if len(roots) != 1:
            raise ValueError("it has no data.pkl, so torch.save did not write it")
        (root,), storages = roots, {}
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")

        def storage(key) -> np.ndarray:
            _, word, key, _, count = key
            if key not in storages:
                info, dtype = members[f"{root}data/{key}"], dtype_of(word)
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
                    raise ValueError(f"storage {key} has {info.file_size} bytes and not {count} numbers of {dtype}")
                storages[key] = np.frombuffer(archive.read(info), dtype)
            return storages[key]

        with archive.open(f"{root}data.pkl") as inner:
            tree = _Unpickler(inner, _TORCH, storage).load()
        return dict(_arrays(tree, ".")), settings(tree)


def settings(tree: Any) -> dict[str, Any]:
    """{dotted name: value} of the numbers, words and truth values in a checkpoint's `args` or `variant`, which is how
    the run that wrote it was configured (an argparse.Namespace or a dict).
    """
    found = {}
    for top in SETTINGS:
        node = tree.get(top) if isinstance(tree, dict) else None
        leaves = node.fields if isinstance(node, Stand) else node
        if isinstance(leaves, dict):
            found |= {f"{top}.{k}": v for k, v in leaves.items() if isinstance(v, bool | int | float | str)}
    return found


def _arrays(tree: Any, separator: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of every array in nested dicts, lists, tuples and stands; other leaves are not weights."""
    todo, seen = [("", tree, frozenset())], 0
    while todo:
        name, node, above = todo.pop()
        seen += 1
        if seen > _NODES:
            raise ValueError(f"it holds more than {_NODES:,} objects")
        if isinstance(node, _Ndarray):
            node = node.array
        if isinstance(node, np.ndarray):
            yield name, node
        parts: list = []
        if isinstance(node, dict):
            parts = list(node.items())
        elif isinstance(node, list | tuple):
            parts = list(enumerate(node))
        elif isinstance(node, Stand):
            parts = [*enumerate(node.args), *node.fields.items()]
        if parts and id(node) not in above:  # an object that contains itself is read once
            above = above | {id(node)}
            todo += [(f"{name}{separator}{key}" if name else str(key), part, above) for key, part in reversed(parts)]
