"""What failing storage is called, whoever met it."""

import errno
import os

import pytest
from etils import epath

from maeclip_jax import cli
from maeclip_jax.errors import UserError, storage
from maeclip_jax.workdir import write_text


def full(path="") -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([str(path)] if path else []))


@pytest.mark.parametrize("number", storage.ERRNOS)
def test_each_ailment_is_named_with_the_path(number, tmp_path):
    with pytest.raises(storage.StorageError) as raised, storage.writing(tmp_path / "x", 3_400_000):
        raise OSError(number, os.strerror(number))
    said = str(raised.value)
    assert said.startswith(f"cannot write {tmp_path / 'x'}: {os.strerror(number)}") and "\n" not in said
    assert raised.value.room == ("3.4 MB are needed" in said) == (number in storage.ROOM)
    assert (" free" in said) == (number == errno.ENOSPC)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_EXHAUSTED: Failed to write 5 bytes to file 18: No space left on device"),
        RuntimeError("PERMISSION_DENIED: something [os_error_code='13']"),
    ],
)
def test_what_libraries_in_cpp_raise_is_read_from_its_text(error, tmp_path):
    said = f"^cannot write {tmp_path}: (No space left|Permission denied)"
    with pytest.raises(storage.StorageError, match=said), storage.writing(tmp_path):
        raise error
    try:  # and what lies behind another error
        try:
            raise error
        except Exception as e:
            raise KeyError("state") from e
    except KeyError as e:
        assert storage.failure(tmp_path, e)


def test_other_errors_pass_unchanged_and_a_file_elsewhere_is_not_said_to_be_written(tmp_path):
    for error in (ValueError("no"), UserError("mine"), OSError("of no number"), TimeoutError("slow")):
        with pytest.raises(type(error), match=str(error)) as raised, storage.writing(tmp_path):
            raise error
        assert raised.value is error
    with pytest.raises(storage.StorageError, match=r"^Permission denied: /photos/1\.jpg$"), storage.writing(tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/photos/1.jpg")


def test_a_command_that_meets_it_anywhere_ends_in_one_line(capsys):
    def command():
        raise full("/data/x")

    assert cli.guarded(command) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: '/data/x'\n"

    def broken():
        raise FileNotFoundError(errno.ENOENT, "a mistake of the program", "x")

    with pytest.raises(FileNotFoundError):
        cli.guarded(broken)


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("old")
    kind = type(epath.Path(path))
    write = kind.write_bytes

    def half(self, text, *args, **kwargs):
        write(self, text[: len(text) // 2])
        raise full()

    monkeypatch.setattr(kind, "write_bytes", half)
    with pytest.raises(storage.StorageError, match=f"^cannot write {path}: No space left on device"):
        write_text(kind(path), "new text")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"] and path.read_text() == "old"


def test_sizes():
    assert [storage.size(n) for n in (0, 999, 3_400_000, 1_160_000_000)] == [
        "0 bytes",
        "999 bytes",
        "3.4 MB",
        "1.16 GB",
    ]


def test_a_process_that_another_has_left_does_not_blame_a_bucket():
    """What jax raises when a process of a pod is gone: its status has a type with a name of googleapis.com."""
    lost = RuntimeError(
        "UNAVAILABLE: Gloo AllGather failed: Connection reset by peer [type.googleapis.com/tensorflow.DerivedStatus='']"
    )
    assert storage.met(lost) is None
    asked = RuntimeError("UNAVAILABLE: https://storage.googleapis.com/storage/v1/b/name: Connection reset by peer")
    assert "cannot use storage.googleapis.com: the storage does not answer" in str(storage.met(asked))
