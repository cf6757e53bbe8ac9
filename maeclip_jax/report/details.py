"""What evaluators give beside numbers (tables, examples, contact sheets, captions), cut up for a page."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Collection, Iterable, Mapping

from maeclip_jax.report.run import Result, Run, readable

SMALL_PNG = 6000  # bytes; larger crops are stored as JPEG where that is smaller
TABLE_ROWS = 200
WIDEST = 1600  # pixels of a row of a contact sheet; a wider one is made smaller


@dataclasses.dataclass(frozen=True)
class Picture:
    """Bytes of a picture; `dark` and `file` (for markdown) where they differ from `data`."""

    name: str
    data: bytes
    dark: bytes = b""
    file: bytes = b""
    width: int = 0

    @property
    def kind(self) -> str:
        """File extension of `data`."""
        if self.data[:4] == b"\x89PNG":
            return "png"
        return "jpg" if self.data[:2] == b"\xff\xd8" else "svg"

    def named(self, name: str) -> Picture:
        """The same picture under another name."""
        return dataclasses.replace(self, name=name)


def _sheet(run: Run, r: Result, name: str, missing: list[str]):
    """The picture an evaluator saved as `name`, opened; None, said in `missing`, if it is not there."""
    path = r.pictures.get(name)
    data = run.picture(path) if path else None
    if data is None:
        missing.append(f"The pictures of {readable(r.evaluator)} are not in the workdir ({path or name}).")
        return None
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def _crop(image, box: tuple[int, int, int, int], name: str) -> Picture:
    """A part of a picture: PNG while small, else the smaller of PNG and JPEG."""
    part, out = image.crop(box), io.BytesIO()
    if part.width > WIDEST:
        part = part.resize((WIDEST, max(1, part.height * WIDEST // part.width)))
    part.save(out, "PNG", optimize=True)
    if out.tell() > SMALL_PNG:
        jpeg = io.BytesIO()
        part.save(jpeg, "JPEG", quality=90, subsampling=0)
        out = min(out, jpeg, key=lambda b: b.tell())
    return Picture(name, out.getvalue(), width=part.width)


def _tiles(run: Run, r: Result, detail: Mapping, missing: list[str]) -> dict:
    """Retrieval examples, each tile cut out of the evaluator's sheet."""
    image = _sheet(run, r, detail["picture"], missing)
    size, columns = detail["tile"], detail["columns"]
    cut: dict[int, Picture | None] = {}

    def tile(place: int) -> Picture | None:
        if place not in cut:
            y, x = place // columns * size, place % columns * size
            inside = image is not None and y + size <= image.height and x + size <= image.width
            cut[place] = _crop(image, (x, y, x + size, y + size), f"{r.evaluator}-{place:03}") if inside else None
        return cut[place]

    def query(q: Mapping) -> dict:
        found = [dict(f) | ({"picture": tile(f["tile"])} if "tile" in f else {}) for f in q["found"]]
        return dict(q) | {"picture": tile(q["tile"]), "found": found, "among": any(f["right"] for f in found)}

    ways = {way: [query(q) for q in detail.get(way, ())] for way in ("image_to_text", "text_to_image")}
    return {"note": detail.get("note", ""), "size": size} | ways


def _contact_sheet(run: Run, r: Result, detail: Mapping, missing: list[str]) -> dict:
    """The rows of a contact sheet, each one picture, with its line of `rows_text` if there is one."""
    image, rows, gap = _sheet(run, r, detail["picture"], missing), detail["rows"], detail.get("gap", 0)
    pictures = []
    if image is not None and rows:
        height = (image.height + gap) // rows
        boxes = [(0, n * height, image.width, n * height + height - gap) for n in range(rows)]
        pictures = [_crop(image, box, f"{r.evaluator}-{n:02}") for n, box in enumerate(boxes)]
    texts = [str(t) for t in detail.get("rows_text") or ()]
    texts += [""] * (len(pictures) - len(texts))
    rows = list(zip(pictures, texts))
    title = TITLES.get(r.settings.get("type", r.evaluator), readable(r.evaluator))
    legend = [(str(n), c) for n, c in detail.get("legend") or () if re.fullmatch("#[0-9a-fA-F]{6}", str(c))]
    shown = {"title": title, "columns": detail["columns"], "rows": rows, "legend": legend}
    return {"note": detail.get("note", "")} | shown


def _captions(run: Run, r: Result, detail: Mapping, missing: list[str]) -> dict:
    """Captions as words with what was filled in; `glued` pieces belong to the word before."""
    lines = []
    for line in detail["captions"]:
        out = []
        for token in line:
            true, glued = spell(token["true"])
            entry = {"true": true, "glued": glued and bool(out), "masked": "filled" in token}
            if entry["masked"]:
                entry |= {"filled": spell(token["filled"])[0], "right": token["filled"] == token["true"]}
            out.append(entry)
        lines.append(out)
    return {"note": detail.get("note", ""), "lines": lines}


def _table(run: Run, r: Result, detail: Mapping, missing: list[str]) -> dict:
    """A table of an evaluator; the first TABLE_ROWS rows of it."""
    note = detail.get("note", "")
    if len(detail["rows"]) > TABLE_ROWS:
        note += f" The first {TABLE_ROWS} of {len(detail['rows'])} rows."
    rows = [[f"{c:.1f}" if isinstance(c, float) else c for c in row] for row in detail["rows"][:TABLE_ROWS]]
    return {"columns": detail["columns"], "rows": rows, "note": note}


TITLES = {
    "reconstruction": "Masked pictures, filled in",
    "segmentation": "Segmentation without training",
    "grounding": "Where a phrase is seen",
}
BUILD = {"tiles": _tiles, "sheet": _contact_sheet, "captions": _captions, "table": _table}


def spell(token: str) -> tuple[str, bool]:
    """(text, whether it continues the word before) of WordPiece `##s`, CLIP `cat</w>`, SentencePiece `▁cat`."""
    if token.startswith("##"):
        return token[2:], True
    return token.removesuffix("</w>").replace("▁", "") or token, False


def shown(
    run: Run, results: Iterable[Result], missing: list[str], kinds: Collection[str] = tuple(BUILD)
) -> dict[str, list[dict]]:
    """All details of `kinds`; what is of no kind known here is left out. What cannot be shown is said in `missing`."""
    out: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for r in results:
        for name, detail in r.details.items():
            kind = detail.get("kind") if isinstance(detail, Mapping) else None
            if kind in out:
                entry = {"evaluator": r.evaluator, "type": r.settings.get("type", r.evaluator), "step": r.step}
                out[kind].append(entry | {"name": name} | BUILD[kind](run, r, detail, missing))
    return out
