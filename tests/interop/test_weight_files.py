"""Files of weights: what is in them comes back bit by bit, what is wrong with them is one line, nothing is executed."""

import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.interop import files

RNG = np.random.default_rng(0)
ARRAYS = {
    "visual.conv1.weight": RNG.standard_normal((4, 3, 2, 2)).astype(np.float32),
    "ids": np.arange(7),
    "half": RNG.standard_normal((3, 2)).astype(np.float16),
    "scale": np.array(2.5, np.float32),
}
BF16 = RNG.standard_normal((2, 3)).astype(ml_dtypes.bfloat16)


def same(got, want):
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
        np.testing.assert_array_equal(np.asarray(got[name], np.float64), np.asarray(array, np.float64))


def safetensors(arrays, **changes) -> bytes:
    words = {"float32": "F32", "float16": "F16", "int64": "I64", "bfloat16": "BF16"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, a in arrays.items():
        offsets = [len(data), len(data) + a.nbytes]
        header[name] = dict(dtype=words[str(a.dtype)], shape=list(a.shape), data_offsets=offsets) | changes
        data += a.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def torch_names(monkeypatch):
    """Modules called torch, so that pickle writes their names; the reader imports none of them."""
    utils, torch, modules = (types.ModuleType(n) for n in ("torch._utils", "torch", "m3ae.model"))

    def named(module, name, value):
        value.__module__, value.__qualname__ = module.__name__, name
        setattr(module, name, value)

    for word in ("Float", "Half", "Long", "BFloat16"):
        named(torch, f"{word}Storage", type(f"{word}Storage", (), {}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_qtensor"):
        named(utils, name, lambda *a: None)
    named(torch, "device", lambda *a: None)
    named(modules, "M3AETrainState", type("M3AETrainState", (), {}))
    for module in (utils, torch, modules, types.ModuleType("m3ae")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return types.SimpleNamespace(utils=utils, torch=torch, m3ae=modules)


class Made:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def torch_archive(names, arrays, wrap=lambda state: state, count=None, stride=None, zipped=zipfile.ZIP_STORED) -> bytes:
    words = {"float32": "Float", "float16": "Half", "int64": "Long", "bfloat16": "BFloat16"}
    storages = []

    class Writer(pickle.Pickler):
        def persistent_id(self, thing):
            if not isinstance(thing, np.ndarray):
                return None
            storages.append(thing)
            kind = getattr(names.torch, f"{words[str(thing.dtype)]}Storage")
            return "storage", kind, str(len(storages) - 1), "cpu", count or thing.size

    def tensor(a):
        steps = stride or tuple(s // a.itemsize for s in a.strides)
        return Made(names.utils._rebuild_tensor_v2, a, 0, a.shape, steps, False, OrderedDict())

    out, data = io.BytesIO(), io.BytesIO()
    state = OrderedDict((name, tensor(a)) for name, a in arrays.items())
    state._metadata = OrderedDict({"": {"version": 1}})  # as torch's have it
    Writer(data, protocol=2).dump(wrap(state))
    with zipfile.ZipFile(out, "w", zipped) as archive:
        archive.writestr("model/data.pkl", data.getvalue())
        archive.writestr("model/byteorder", "little")
        for i, a in enumerate(storages):
            archive.writestr(f"model/data/{i}", a.tobytes())
    return out.getvalue()


def npz(arrays) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def put(folder, name, data: bytes):
    path = folder / name
    path.write_bytes(data)
    return path


def test_safetensors(tmp_path):
    same(files.read(put(tmp_path, "x.safetensors", safetensors(ARRAYS | {"b": BF16}))), ARRAYS | {"b": BF16})


def test_npz(tmp_path):
    tree = {"params/img/embedding/kernel": np.asfortranarray(ARRAYS["half"]), "params/t": ARRAYS["scale"]}
    same(files.read(put(tmp_path, "x.npz", npz(tree))), tree)
    out = io.BytesIO()
    np.savez_compressed(out, b=BF16.view("V2"), zeros=np.zeros((512, 512), np.float32))
    same(files.read(put(tmp_path, "y.npz", out.getvalue())), {"b": BF16, "zeros": np.zeros((512, 512), np.float32)})


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_torch_archives(tmp_path, torch_names, suffix):
    path = put(tmp_path, f"x{suffix}", torch_archive(torch_names, ARRAYS | {"b": BF16}))
    same(files.read(path), ARRAYS | {"b": BF16})
    assert files.read(path)["ids"].dtype == np.int64


def test_torch_archives_of_a_training_run_and_views(tmp_path, torch_names):
    import argparse

    def run(state):
        args = argparse.Namespace(lr=1e-3, device=Made(torch_names.torch.device, "cuda"))
        return {"model": state, "epoch": 3, "args": args}

    arrays = {"w": np.arange(12, dtype=np.float32).reshape(3, 4)}
    path = put(tmp_path, "x.pth", torch_archive(torch_names, arrays, run))
    same(files.read(path), {"model.w": arrays["w"]})
    assert files.read_all(path)[1] == {"args.lr": 1e-3}
    turned = torch_archive(torch_names, arrays, stride=(1, 3))
    same(files.read(put(tmp_path, "y.pth", turned)), {"w": arrays["w"].reshape(4, 3).T})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_a_train_state(tmp_path, torch_names, protocol):
    """As M3AE writes them: the parameters are the attributes of an object whose class is not here."""
    state = torch_names.m3ae.M3AETrainState()
    tree = {"encoder": {"kernel": ARRAYS["half"], "swapped": ARRAYS["half"].astype(">f2")}, "list": [ARRAYS["ids"]]}
    state.params, state.step, state.tx = {"params": tree}, np.int32(7), None
    saved = {"step": 7, "variant": {"lr": 0.1}, "state": state}
    saved["again"] = saved  # a thing that holds itself
    path = put(tmp_path, "model.pkl", pickle.dumps(saved, protocol))
    got = files.read(path)
    np.testing.assert_array_equal(got.pop("state/params/params/encoder/swapped"), ARRAYS["half"])
    same(got, {
        "state/params/params/encoder/kernel": ARRAYS["half"], "state/params/params/list/0": ARRAYS["ids"],
        "state/step": np.array(7, np.int32),
    })  # fmt: skip


def test_pickles_of_jax_and_bfloat16_arrays(tmp_path):
    import jax.numpy as jnp

    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": BF16, "f": np.asfortranarray(ARRAYS["half"])}
    same(files.read(put(tmp_path, "x.pkl", pickle.dumps(tree))), {k: np.asarray(v) for k, v in tree.items()})


def test_a_folder_in_one_file_and_in_parts(tmp_path, torch_names):
    (one := tmp_path / "one").mkdir()
    put(one, "pytorch_model.bin", torch_archive(torch_names, {"w": ARRAYS["half"]}))
    same(files.read(one), {"w": ARRAYS["half"]})
    put(one, "model.safetensors", safetensors(ARRAYS))  # what is preferred
    same(files.read(one), ARRAYS)

    (parts := tmp_path / "parts").mkdir()
    names = list(ARRAYS)
    index = {n: f"model-{i // 2}.safetensors" for i, n in enumerate(names)}
    put(parts, "model.safetensors.index.json", json.dumps({"weight_map": index}).encode())
    for part in set(index.values()):
        put(parts, part, safetensors({n: ARRAYS[n] for n in names if index[n] == part}))
    same(files.read(parts), ARRAYS)

    put(parts, "model-1.safetensors", safetensors({"half": ARRAYS["half"]}))
    refused(parts, r"the parts and model.safetensors.index.json disagree on 1 names: scale")
    (parts / "model-1.safetensors").unlink()
    refused(parts, r"model-1.safetensors': no such file")
    put(parts, "model.safetensors.index.json", json.dumps({"weight_map": {"w": "../x.safetensors"}}).encode())
    refused(parts, r"it names a part outside of its folder: \['../x.safetensors'\]")
    (empty := tmp_path / "empty").mkdir()
    refused(empty, r"the folder holds none of model.safetensors, ")


def refused(path, text):
    with pytest.raises(UserError, match=text) as caught:
        files.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 420
    assert str(path.name) in str(caught.value)


def good(names) -> dict[str, bytes]:
    return {
        ".safetensors": safetensors(ARRAYS),
        ".npz": npz(ARRAYS),
        ".pkl": pickle.dumps(ARRAYS),
        ".pth": torch_archive(names, ARRAYS),
    }


@pytest.mark.parametrize("suffix", files.KINDS)
def test_a_file_that_is_not_there_empty_or_of_another_kind(tmp_path, suffix, torch_names):
    refused(tmp_path / f"none{suffix}", "no such file")
    refused(put(tmp_path, f"empty{suffix}", b""), r"are not a readable .*: it is empty")
    refused(put(tmp_path, f"text{suffix}", b"<html>404</html>" * 40), "are not a readable ")
    refused(put(tmp_path, f"noise{suffix}", RNG.bytes(4096)), "are not a readable ")
    for other, data in good(torch_names).items():
        if files.KINDS[suffix] != files.KINDS[other]:
            refused(put(tmp_path, f"other{suffix}", data), "are not a readable ")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pkl", ".pth"])
def test_a_file_cut_off_anywhere(tmp_path, suffix, torch_names):
    whole = good(torch_names)[suffix]
    assert files.read(put(tmp_path, f"x{suffix}", whole))
    for length in {*np.linspace(1, len(whole) - 1, 40).astype(int), len(whole) - 1}:
        refused(put(tmp_path, f"x{suffix}", whole[:length]), "are not a readable ")


def test_files_without_arrays_and_unknown_kinds(tmp_path):
    data = pickle.dumps({"step": 3})
    refused(put(tmp_path, "x.pkl", data), "are not a readable pickle of arrays: it holds no arrays")
    refused(put(tmp_path, "x.h5", b"x"), r"unknown kind of file '.h5'; valid: .safetensors, .npz, .pkl, .bin, .pt, ")


@pytest.mark.parametrize(
    "changes, text",
    [
        (dict(shape=[10**9, 10**9]), "of shape .* should begin at byte 0 and have"),
        (dict(shape=[-1]), "should begin at byte 0"),
        (dict(dtype="F8_E4M3"), "'w' has dtype F8_E4M3; valid: F64, F32"),
        (dict(data_offsets=[8, 32]), "should begin at byte 0"),
    ],
)
def test_safetensors_that_lie(tmp_path, changes, text):
    refused(put(tmp_path, "x.safetensors", safetensors({"w": ARRAYS["half"].astype(np.float32)}, **changes)), text)


def test_safetensors_with_bytes_too_many_or_a_huge_header(tmp_path):
    refused(put(tmp_path, "x.safetensors", safetensors(ARRAYS) + b"more"), "describes .* bytes, the file has")
    refused(put(tmp_path, "y.safetensors", struct.pack("<Q", 2**60) + b"{}"), "its header says it has .* bytes")


def test_npz_that_lie(tmp_path):
    def member(header: bytes, name="w.npy"):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 16)
        return out.getvalue()

    huge = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }\n"
    refused(put(tmp_path, "x.npz", member(huge)), r"'w.npy' of shape \(1000000000, 1000000000\) and float32 has")
    objects = b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n"
    refused(put(tmp_path, "x.npz", member(objects)), "holds an array of 'object', which are not numbers")
    refused(put(tmp_path, "x.npz", member(huge, "readme.txt")), "'readme.txt' in it is not an array")


def test_torch_archives_that_lie(tmp_path, torch_names):
    one = {"w": np.arange(12, dtype=np.float32).reshape(3, 4)}
    for changes, text in [
        (dict(count=10**12), "storage 0 has 48 bytes and not 1000000000000 numbers of float32"),
        (dict(stride=(40, 1)), r"a tensor of shape \(3, 4\) does not fit into its storage of 12 numbers"),
        (dict(zipped=zipfile.ZIP_DEFLATED), "storage 0 has 48 bytes"),
    ]:
        refused(put(tmp_path, "x.pth", torch_archive(torch_names, one, **changes)), text)
    packed = torch_archive(torch_names, one, lambda s: {"q": Made(torch_names.utils._rebuild_qtensor, 1)})
    refused(put(tmp_path, "x.pth", packed), r"a tensor of a kind that is not read \(_rebuild_qtensor\)")
    refused(put(tmp_path, "x.pth", npz(ARRAYS)), "it has no data.pkl, so torch.save did not write it")
    refused(
        put(tmp_path, "old.pth", pickle.dumps(0x1950A86A20F9469CFC6C, 2)), r"of torch before 1.6; convert it: torch"
    )


def test_pickles_that_lie(tmp_path):
    from numpy._core.multiarray import _reconstruct

    class Huge:
        def __reduce__(self):
            return _reconstruct, (np.ndarray, (0,), b"b"), (1, (10**9, 10**9), np.dtype("f4"), False, b"1234")

    text = r"an array of shape \(1000000000, 1000000000\) and float32 does not have that many bytes"
    refused(put(tmp_path, "x.pkl", pickle.dumps({"w": Huge()})), text)
    refused(put(tmp_path, "x.pkl", pickle.dumps({"w": np.array([{}, []], object)})), "'O8', which are not numbers")
    memo = b"\x80\x02}r\xff\xff\xff\x7f."  # an empty dict, remembered under 2**31 - 1
    refused(put(tmp_path, "x.pkl", memo), "it holds no arrays")
    shared = []
    for _ in range(40):  # 2 ** 40 leaves in 300 bytes
        shared = [shared, shared]
    refused(put(tmp_path, "x.pkl", pickle.dumps({"w": shared})), "it holds more than 3,000,000 objects")


def evil(folder):
    touched = folder / "touched"
    code = f"open({str(touched)!r}, 'w')"
    calls = {
        "os.system": Made(os.system, f"touch {touched}"),
        "exec": Made(exec, code),
        "eval": Made(eval, code),
        "import": Made(__import__, "os"),
        "open": Made(open, str(touched), "w"),
        "numpy": Made(np.save, str(touched), [1]),
    }
    return touched, calls


@pytest.mark.parametrize("name", ["os.system", "exec", "eval", "import", "open", "numpy"])
def test_a_pickle_that_tries_to_run_code_is_refused_and_runs_nothing(tmp_path, torch_names, name):
    touched, calls = evil(tmp_path)
    with pytest.raises(Exception):  # noqa: B017  the trap works: Python's own reader springs it
        assert not pickle.loads(pickle.dumps(calls[name])) and not touched.exists()
        raise RuntimeError
    touched.unlink(missing_ok=True)
    text = "it asks for '.*', which does not belong in a weight file; nothing was executed"
    refused(put(tmp_path, "x.pkl", pickle.dumps({"w": ARRAYS["half"], "evil": calls[name]})), text)
    refused(put(tmp_path, "y.pkl", pickle.dumps(calls[name], 0)), text)
    for suffix in (".pt", ".pth", ".bin"):
        archive = torch_archive(torch_names, ARRAYS, lambda s: {"model": s, "evil": calls[name]})
        refused(put(tmp_path, f"x{suffix}", archive), text)
    assert not touched.exists()


def test_names_that_are_let_through_do_nothing(tmp_path):
    """Functions that cloudpickle, functools or types would make stay names: no code object, no call, no import."""
    touched = tmp_path / "touched"
    program = b"\x80\x04" + b"".join([
        b"cfunctools\nreduce\n", b"(", b"cfunctools\npartial\n", b"tR0",
        b"ccloudpickle.cloudpickle\nsubimport\n", b"(", b"V" + b"this_module_is_not_there" + b"\n", b"tR0",
        b"ctypes\nFunctionType\n", b"(", b"V" + f"open({str(touched)!r}, 'w')".encode() + b"\n", b"tR0",
        pickle.dumps({"w": ARRAYS["half"]}, 4)[2:],
    ])  # fmt: skip
    same(files.read(put(tmp_path, "x.pkl", program)), {"w": ARRAYS["half"]})
    assert not touched.exists() and "this_module_is_not_there" not in sys.modules


def test_a_whole_train_state_with_its_optimizer(tmp_path):
    """M3AE's logger writes everything by cloudpickle: the optimizer's functions too, as code."""
    cloudpickle = pytest.importorskip("cloudpickle", reason="writes what M3AE's logger writes")
    import jax
    import optax
    from flax.training.train_state import TrainState

    params = {"params": {"encoder": {"kernel": ARRAYS["half"]}, "cls_token": np.ones((1, 1, 3), np.float32)}}
    decay = optax.adamw(optax.cosine_decay_schedule(1.0, 9), mask=lambda tree: jax.tree.map(lambda x: True, tree))
    state = TrainState.create(apply_fn=None, params=params, tx=optax.chain(optax.clip_by_global_norm(1.0), decay))
    saved = cloudpickle.dumps({"step": 1, "variant": {"lr": 1e-3}, "state": jax.device_get(state)})
    got = files.read(put(tmp_path, "model.pkl", saved))
    moments = {name for name in got if name.startswith("state/opt_state/")}
    assert any(name.endswith("encoder/kernel") for name in moments)
    same({name: a for name, a in got.items() if name not in moments}, {
        "state/params/params/encoder/kernel": ARRAYS["half"],
        "state/params/params/cls_token": np.ones((1, 1, 3), np.float32),
    })  # fmt: skip
