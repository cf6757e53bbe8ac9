"""The contact sheet: which records it shows, and that nothing of a source is taken for HTML."""

import dump_sources
import pair_sources

from maeclip_jax.prepare import sheet


def test_the_page_shows_32_kept_and_some_of_each_kind_of_dropped(tmp_path):
    rows = dump_sources.downloads(50, 20)
    rows[3]["caption"] = "<script>alert(1)</script>"
    src = dump_sources.img2dataset(tmp_path / "src", "webdataset", [rows])
    odd = [(f"{i}.jpg", pair_sources.picture(i)) for i in range(40)] + [("40.jpg", b"no"), ("40.txt", b"a&b")]
    pair_sources.write_tar(src / "odd.tar", odd)
    dump_sources.prepared(src, tmp_path / "out")
    page = (tmp_path / "out" / "n" / "1.0.0" / sheet.FILE).read_text()
    kept, dropped = page.split("<h2>Not kept</h2>")
    assert kept.count("<figure>") == 32 and dropped.count("<figure>") == 32
    assert [dropped.count(f'class="why">{kind}<') for kind in ("no_caption", "not_an_image")] == [23, 1]
    assert dropped.count('class="why">failed_to_') == 8 and dropped.count("data:image/jpeg") == 23
    assert "<script>" not in page and "50 kept" not in page
    assert 'kept in split train</span><br><span class="note">1 shard' in page
    assert "http://x/" in dropped and "32 of 61, chosen at random" in page


def test_what_is_shown_depends_on_names_alone():
    entries = [sheet.name_hash("s", f"{i}") for i in range(200)]
    shown = set(sorted(entries)[: sheet.MOST])
    forward, backward = sheet.Dropped(), sheet.Dropped()

    class Entry:
        kind, source, image = "corrupt", "s", b""

        def __init__(self, key):
            self.key = key

        def json(self):
            return {"key": self.key, "kind": self.kind}

    for i in range(200):
        forward.add(Entry(f"{i}"))
        backward.add(Entry(f"{199 - i}"))
    assert forward.json() == backward.json() and {order for order, _ in forward.json()["corrupt"]} == shown
    halves = sheet.Dropped(forward.json())
    halves.update(sheet.Dropped({"empty": [(1, {"key": "e", "kind": "empty"})]}))
    assert [e["kind"] for e in halves.chosen()] == ["corrupt"] * 31 + ["empty"]
