"""Archives that claim, name or repeat too much are refused by name, in bounded memory."""

import os

import dump_sources
import pair_sources
import pytest

from maeclip_jax.errors import UserError


def _header(name: str, size: int, kind: bytes = b"0") -> bytes:
    import tarfile

    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def test_members_that_must_not_be_read_are_named(tmp_path):
    odd = [_header("../../up.jpg", 0), _header("link.jpg", 0, b"2"), _header("device.jpg", 0, b"3"),
           _header("pipe.txt", 0, b"6"), _header("a/../../b.txt", 0)]  # fmt: skip
    path = tmp_path / "src" / "x.tar"
    path.parent.mkdir()
    good = [data for name, data in pair_sources.pair("0", 0)]
    body = b"".join(_header(f"0.{e}", len(d)) + d + bytes(-len(d) % 512) for e, d in zip(("jpg", "txt", "json"), good))
    path.write_bytes(b"".join(odd) + body + bytes(1024))
    found = dump_sources.read(path)
    assert dump_sources.kinds(found) == [""] + ["unsafe_member"] * 5
    assert {r.key: r.error.detail for r in found[1:]} == {
        "../../up.jpg": "has a name that leads out of the archive",
        "link.jpg": "is a symbolic link in the archive",
        "device.jpg": "is a device in the archive",
        "pipe.txt": "is a pipe in the archive",
        "a/../../b.txt": "has a name that leads out of the archive",
    }


@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_a_header_that_claims_ten_gigabytes_costs_no_memory(kind, tmp_path):
    import tracemalloc

    path = tmp_path / "x.tar"
    good = b"".join(_header(n, len(d)) + d + bytes(-len(d) % 512) for n, d in pair_sources.pair("0", 0))
    path.write_bytes(good + _header("1.jpg", 10 * 1024**3, kind) + b"few")
    tracemalloc.start()
    found = dump_sources.read(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert dump_sources.kinds(found) == ["", "unreadable_shard"]
    assert "claims 10,737,418,240 bytes where 3 are left" in found[1].error.detail


def test_endless_members_and_endless_compression_are_bounded(tmp_path, monkeypatch):
    import gzip

    from maeclip_jax.prepare.formats import tarball, webdataset

    monkeypatch.setattr(tarball, "MOST_MEMBERS", 50)
    (tmp_path / "x.tar").write_bytes(b"".join(_header(f"{i}.txt", 0) for i in range(100)))
    found = dump_sources.read(tmp_path / "x.tar")
    assert len(found) == 52 and "more than 50 pictures and texts" in found[-1].error.detail
    monkeypatch.setattr(webdataset, "_LEAST", 1 << 16)
    (tmp_path / "z.tar.gz").write_bytes(gzip.compress(bytes(64 << 20)))
    (raw,) = dump_sources.read(tmp_path / "z.tar.gz")
    assert raw.error.kind == "unreadable_shard" and "expands to more than" in raw.error.detail


def test_tars_of_any_writer_are_indexed_as_the_library_does(tmp_path):
    import io
    import tarfile

    from maeclip_jax.prepare.formats import tarball

    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{format}.tar"
        with tarfile.open(path, "w", format=format) as tar:
            for name in ("0.jpg", "d" * 90 + "/" + "e" * 60 + ".jpg", "é.txt", "n" * 99 + ".jpg"):
                if format == tarfile.USTAR_FORMAT and name == "n" * 99 + ".jpg":
                    continue
                entry = tarfile.TarInfo(name)
                entry.size = 700
                tar.addfile(entry, io.BytesIO(bytes(700)))
            if format != tarfile.USTAR_FORMAT:
                entry = tarfile.TarInfo("f/" * 120 + "g.jpg")
                tar.addfile(entry)
        with tarfile.open(path) as tar, open(path, "rb") as file:
            found = tarball.index(file.fileno(), os.path.getsize(path))
            expected = [(m.name, m.offset_data, m.size) for m in tar]
        assert [(m.name, m.start, m.size) for m in found.members] == expected and not found.problem


@pytest.mark.parametrize("layout", ["webdataset", "parquet", "tfrecord", "arrow"])
def test_damage_anywhere_is_an_account_or_one_line(layout, tmp_path):
    import random

    rng = random.Random(0)
    if layout == "arrow":
        src = dump_sources.hugging_face(tmp_path / "src", {"train": 4})
    else:
        src = dump_sources.img2dataset(tmp_path / "src", layout, [dump_sources.downloads(3, 2)])
    (path,) = [p for p in src.rglob("*") if p.suffix in (".tar", ".tfrecord", ".arrow") or p.name == "00000.parquet"][
        :1
    ]
    data = path.read_bytes()
    for number in range(25):
        damaged = bytearray(data[: rng.randrange(len(data))] if number % 3 else data)
        for _ in range(4 if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            found = dump_sources.read(src)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(raw.image or raw.error for raw in found)


def test_damage_anywhere_in_a_compressed_tfrecord_ends_it_alone(tmp_path):
    import gzip
    import random

    rng = random.Random(0)
    rows = [{"jpg": pair_sources.picture(i), "caption": b"c", "text": rng.randbytes(4000).hex().encode()}
            for i in range(12)]  # fmt: skip
    for name in ("0.tfrecord", "1.tfrecord"):
        dump_sources.write_tfrecord(tmp_path / "src" / name, rows)
    path = tmp_path / "src" / "0.tfrecord"
    data = gzip.compress(path.read_bytes())
    for _ in range(20):
        at = rng.randrange(30, len(data))
        path.write_bytes(data[:at] + rng.randbytes(30) + data[at + 30 :])
        *found, last = dump_sources.read(path.parent)
        assert len([raw for raw in (*found, last) if raw.source == "1.tfrecord" and not raw.error]) == 12
        assert [raw.error.kind for raw in found if raw.error] == ["unreadable_shard"]


def test_nothing_outside_the_data_set_is_written(tmp_path):
    names = ("../../up.jpg", "/tmp/../absolute.jpg", "../0.txt", "link.jpg", "..\\windows.jpg", "a/\0b.jpg")
    body = b"".join(_header(n, 0, b"2" if n == "link.jpg" else b"0") for n in names)
    good = b"".join(_header(n, len(d)) + d + bytes(-len(d) % 512) for n, d in pair_sources.pair("0", 0))
    (tmp_path / "a" / "b" / "src").mkdir(parents=True)
    (tmp_path / "a" / "b" / "src" / "x.tar").write_bytes(body + good + bytes(1024))
    before = pair_sources.digests(tmp_path)
    here = tmp_path / "a" / "b"
    tree, account, found = dump_sources.prepared(here / "src", here / "out", "--max_bad", 1)
    assert len(found["train"]) == 1 and len(account) == tree["records"]["dropped"] >= 4
    after = {n: d for n, d in pair_sources.digests(tmp_path).items() if not n.startswith("a/b/out/n/1.0.0/")}
    assert after == before


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "large"])
def test_pictures_that_are_not_plain_files_are_named(what, tmp_path, monkeypatch):
    from maeclip_jax.prepare.formats import pictures

    src = pair_sources.table(tmp_path / "src", [{"image": f"{i}.jpg", "caption": "c"} for i in range(3)])
    path = src / "images" / "1.jpg"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    else:
        path.write_bytes(bytes(5000))
        monkeypatch.setattr(pictures, "LARGEST", 4000)
    found = dump_sources.read(src)
    assert dump_sources.kinds(found)[::2] == ["", ""]
    said = {"pipe": "is a pipe or a device", "device": "is a pipe or a device", "folder": "is a folder"}
    assert said.get(what, "has 5,000 bytes; at most 4,000 are read") in found[1].error.detail


def test_json_that_is_nested_too_deeply_is_a_bad_record(tmp_path):
    deep = b'{"caption": ' + b"[" * 100_000
    jpg = pair_sources.picture(0)
    members = [("0.jpg", jpg), ("0.json", b'{"caption": "c"}'), ("1.jpg", jpg), ("1.json", deep)]
    pair_sources.write_tar(tmp_path / "tar" / "x.tar", members)
    assert dump_sources.kinds(dump_sources.read(tmp_path / "tar")) == ["", "unreadable_row"]
    src = pair_sources.table(tmp_path / "table", [{"image": "0.jpg", "caption": "c"}])
    with open(src / "captions.jsonl", "ab") as file:
        file.write(deep + b"\n")
    assert dump_sources.kinds(dump_sources.read(src)) == ["", "unreadable_row"]


@pytest.mark.parametrize("change", ["grows", "is replaced", "is removed"])
def test_a_source_that_changes_while_it_is_read_is_one_line(change, tmp_path, monkeypatch, capsys):
    from maeclip_jax.prepare import command, records

    src = tmp_path / "src"
    for shard in range(3):
        pair_sources.write_tar(src / f"{shard}.tar", pair_sources.pair(f"{shard}", shard))
    argv = [str(a) for a in ("--src", src, "--out", tmp_path / "out", "--name", "n", "--workers", 1)]
    whole, read = (src / "1.tar").read_bytes(), records.read

    def changing(reading, unit):
        yield from read(reading, unit)
        if unit.path == "1.tar" and change == "grows":
            (src / "1.tar").write_bytes(whole + bytes(512))
        elif unit.path == "0.tar" and change == "is replaced":  # by one of its size
            (src / "1.tar").write_bytes(whole)
        elif unit.path == "1.tar" and change == "is removed":
            (src / "1.tar").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(records, "read", changing)
        assert command.main(argv) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    what = "was removed" if change == "is removed" else "changed"
    assert len(said) == 1 and said[0].startswith(f"error: 1.tar {what} while it was read; valid: the same command when")
    assert not (tmp_path / "out" / "n" / "1.0.0").exists()
    (src / "1.tar").write_bytes(whole)
    assert command.main(argv) == 0
