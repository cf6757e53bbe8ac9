"""Files of weights as {name: array}: safetensors, torch archives, .npz, pickles, and folders of Hugging Face.

`read` checks the whole file before it returns anything: a file that is truncated, damaged, or not of the type that its
name implies raises a one-line UserError. Nothing in a file is ever executed (`interop.pickles`), and torch is not
needed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.interop import pickles

# What a folder may hold its weights in, best first; an index names the files of the parts. The Hub has folders with a
# model of transformers and one of open_clip side by side.
FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OPEN_CLIP = (
    *(f"{name}{of}" for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
      for of in ("", ".index.json")), *FOLDER,
)  # fmt: skip
_SAFETENSORS = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
    "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_ZIP = b"PK\x03\x04"


def read(path: str | os.PathLike, names: Sequence[str] = FOLDER) -> dict[str, np.ndarray]:
    """Every array of `path` by its name in the file ('.'-joined in torch's, '/'-joined in .npz and .pkl).

    A folder is read as Hugging Face writes it, in one file or in parts: the first of `names` that it holds. Raises
    UserError: no such file, not of its kind, cut off, sizes that do not fit, no arrays in it, or a pickle that asks for
    anything but arrays.
    """
    return read_all(path, names)[0]


def read_all(path: str | os.PathLike, names: Sequence[str] = FOLDER) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(what `read` gives, the settings of the run that wrote the file by dotted name: `pickles.settings`)."""
    path = Path(path)
    if path.is_dir():
        return _folder(path, names)
    if path.suffix not in KINDS:
        raise UserError(f"weights {str(path)!r}: unknown kind of file {path.suffix!r}; valid: {', '.join(KINDS)}")
    what, reader = KINDS[path.suffix]
    with _named(path, what):
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("it is empty")
            found = reader(file)
        arrays, settings = found if isinstance(found, tuple) else (found, {})
        if not arrays:
            raise ValueError("it holds no arrays")
    return arrays, settings


@contextlib.contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    """Turns any error inside into a one-line UserError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"weights {str(path)!r}: no such file") from None
    except zipfile.BadZipFile:
        reason = "truncated, damaged, or of another kind"
        raise UserError(f"weights {str(path)!r} are not a readable {what}: {reason}") from None
    except Exception as e:  # a damaged file fails anywhere in a reader: KeyError, IndexError, EOFError, ...
        reason = " ".join(str(e).split())[:200]
        if not isinstance(e, ValueError):
            reason = f"{type(e).__name__}: {reason}" if reason else type(e).__name__
        raise UserError(f"weights {str(path)!r} are not a readable {what}: {reason}") from None


def _folder(path: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        other = next((n for n in OPEN_CLIP if (path / n).is_file()), None)
        hint = f"; {other} in it is open_clip's: read it as open_clip" if other else ""
        raise UserError(f"weights {str(path)!r}: the folder holds none of {', '.join(names)}{hint}")
    if found.suffix != ".json":
        return read_all(found)
    with _named(found, "index of parts"):
        index = json.loads(found.read_text())["weight_map"]
        parts = sorted(set(index.values()))
        if any(Path(part).name != part for part in parts):
            raise ValueError(f"it names a part outside of its folder: {parts}")
    arrays: dict[str, np.ndarray] = {}
    for part in parts:
        arrays |= read(path / part)
    if set(arrays) != set(index):
        other = sorted(set(arrays) ^ set(index))
        raise UserError(f"weights {str(path)!r}: the parts and {found.name} disagree on {len(other)} names: {other[0]}")
    return arrays, {}


def _safetensors(file) -> dict[str, np.ndarray]:
    """Format: github.com/huggingface/safetensors: u64 length, JSON header, then the bytes without holes."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise ValueError(f"its header says it has {length} bytes, the file has {size}")
    header = json.loads(file.read(length))
    start, end = 8 + length, 0
    tensors = [(name, h) for name, h in header.items() if name != "__metadata__"]
    for name, h in sorted(tensors, key=lambda item: item[1]["data_offsets"]):
        begin, finish = h["data_offsets"]
        wanted = math.prod(h["shape"]) * pickles.dtype_of(_word(name, h)).itemsize
        if begin != end or finish - begin != wanted or min(h["shape"], default=0) < 0:
            raise ValueError(f"{name!r} of shape {h['shape']} should begin at byte {end} and have {wanted}")
        end = finish
    if start + end != size:
        raise ValueError(f"its header describes {start + end} bytes, the file has {size}")
    data = np.memmap(file, np.uint8, "r", offset=start) if end else np.empty(0, np.uint8)
    return {
        name: np.asarray(data[slice(*h["data_offsets"])]).view(pickles.dtype_of(_word(name, h))).reshape(h["shape"])
        for name, h in tensors
    }


def _word(name: str, header: dict) -> str:
    if header["dtype"] not in _SAFETENSORS:
        raise ValueError(f"{name!r} has dtype {header['dtype']}; valid: {', '.join(_SAFETENSORS)}")
    return _SAFETENSORS[header["dtype"]]


def _torch(file) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    start = file.read(4)
    file.seek(0)
    if start == _ZIP:
        return pickles.read_torch(file)
    if start[:1] == b"\x80":
        raise ValueError(
            "it is in the format of torch before 1.6; convert it: "
            "torch.save(torch.load(old, map_location='cpu', weights_only=True), new)"
        )
    raise ValueError("truncated, damaged, or of another kind")


def _npz(file) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                raise ValueError(f"{info.filename!r} in it is not an array")
            with archive.open(info) as member:
                array = _npy(member, info)
            arrays[info.filename.removesuffix(".npy")] = array
    return arrays


def _npy(member, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; its size is known to fit the file before anything is allocated."""
    version = np.lib.format.read_magic(member)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(member)
    if dtype.kind == "V" and dtype.itemsize == 2 and not dtype.names:
        dtype = "bfloat16"  # what numpy makes of a type that it does not know
    dtype = pickles.dtype_of(dtype)
    size = math.prod(shape) * dtype.itemsize
    # 1032 is the most that deflate can shrink anything.
    if member.tell() + size != info.file_size or info.file_size > 1100 * max(1, info.compress_size):
        raise ValueError(f"{info.filename!r} of shape {shape} and {dtype} has {info.file_size} bytes")
    return np.frombuffer(member.read(), dtype).reshape(shape, order="F" if fortran else "C")


KINDS = {
    ".safetensors": ("safetensors file", _safetensors),
    ".npz": ("npz file of numbers", _npz),
    ".pkl": ("pickle of arrays", pickles.read_pickle),
    **dict.fromkeys((".bin", ".pt", ".pth"), ("torch archive of tensors", _torch)),
}
