"""Image-text retrieval: recall at k, both ways, with several captions per picture counted right.

Image to text is a hit if ANY caption of the picture is among the first k texts; text to image is counted per caption.
Ties count as what they give on average over all orders of them (see `recall`), so that a collapsed model scores what
chance does. Each different text is embedded once and scored once, so that equal captions tie exactly.

Captions that several pictures share (`duplicates`):
- "apart": every caption is its own candidate and only its own picture is right, as in the published COCO and
  Flickr30k protocols. A caption with n equal copies on other pictures then has n wrong candidates beside it, and the
  first place is its picture's in one of n + 1 orders.
- "merge": equal captions are one candidate, right for every picture that has it; a caption finds any of its pictures.
  The measure for drawn scenes, where equal captions are equally true.
Two captions are equal if their token ids are, since the model cannot tell them apart. A caption without tokens is
left out, and a picture without captions is only a candidate.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError, unknown
from maeclip_jax.evals import representation
from maeclip_jax.evals.items import Items, one_by_one
from maeclip_jax.evals.pictures import sheet, thumbnail
from maeclip_jax.evals.protocol import (
    Batch,
    Context,
    Detail,
    Metric,
    Picture,
    as_text,
    key_rows,
    need_shared_space,
    percent,
    select,
    unit_rows,
)
from maeclip_jax.evals.recall import Places, chances, image_to_text, text_to_image

COLUMNS = 8  # of the sheet of thumbnails


@dataclasses.dataclass
class Gallery:
    """All that was embedded. `pairs`: which picture has which of the different texts."""

    images_NxD: np.ndarray
    texts_UxD: np.ndarray
    pairs_Mx2: np.ndarray
    ids_UxT: np.ndarray
    keys: list[str]
    batch_rows: list[int]  # real rows of each batch


class Retrieval:
    """`data`: its ops keep "image" and "text", [B, T] or [B, K, T] with `_captions` [B], how many of the K are real.

    Metrics in percent: `image_to_text_R@k`, `text_to_image_R@k`, each with its chance level; where all
    candidates are among the first k, the number says how many there are. Then `alignment`, `uniformity_image`,
    `uniformity_text`, `modality_gap` and `effective_rank` of the embeddings, see `representation`.
    `examples`: how many best, median and worst queries of each direction are shown, with the `shown` first finds.
    """

    def __init__(
        self,
        context: Context,
        *,
        data: Mapping,
        batch_size: int = 256,
        k: Sequence[int] = (1, 5, 10),
        duplicates: str = "apart",
        examples: int = 2,
        shown: int = 5,
        tile: int = 96,
    ):
        need_shared_space(context.objective, "retrieval")
        if duplicates not in ("apart", "merge"):
            raise unknown("retrieval duplicates", duplicates, ["apart", "merge"])
        self.context, self.data, self.batch_size, self.k = context, data, batch_size, tuple(k)
        self.merge, self.examples, self.shown, self.tile = duplicates == "merge", examples, shown, tile

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Metrics, then examples and one picture that holds their thumbnails."""
        g = self._embed(params)
        asked = np.unique(g.pairs_Mx2[:, 0])  # pictures that have a caption
        i2t = image_to_text(g.images_NxD, g.texts_UxD, g.pairs_Mx2, self.merge).take(asked)
        t2i = text_to_image(g.images_NxD, g.texts_UxD, g.pairs_Mx2, self.merge)
        chance_i2t, chance_t2i = chances(g.pairs_Mx2, len(g.images_NxD), len(g.texts_UxD), self.merge)
        key_N = np.array(one_by_one(g.keys), object)
        key_M = key_N[g.pairs_Mx2[:, 0]]
        turns: Counter[str] = Counter()
        names = {
            "image_to_text": {"key": key_N[asked]},
            "text_to_image": {"key": [f"{key}/{_turn(turns, key)}" for key in key_M], "group": key_M},
        }
        texts = len(g.texts_UxD) if self.merge else len(g.pairs_Mx2)
        ways = (
            ("image_to_text", i2t, chance_i2t, texts),
            ("text_to_image", t2i, chance_t2i, len(g.images_NxD)),
        )
        for way, places, chance, candidates in ways:
            for k in self.k:
                note = f"of {candidates} candidates" if k >= candidates else ""
                hit = places.hit(k)
                items = Items(100 * hit, **names[way])
                yield percent(f"{way}_R@{k}", 100 * np.mean(hit), chance=chance(k), note=note, items=items)
        yield from representation.of_pairs(g.images_NxD, g.texts_UxD, g.pairs_Mx2, names["text_to_image"])
        if self.examples:
            tiles: dict[int, int] = {}  # picture -> its place on the sheet
            images, texts = pick(i2t, asked, self.examples), pick(t2i, g.pairs_Mx2[:, 0], self.examples)
            repeated = len(g.pairs_Mx2) - len(g.ids_UxT)
            note = f"{len(g.images_NxD)} pictures, {len(g.pairs_Mx2)} captions; {repeated} repeat the words of another"
            note += ", and equal captions count as one." if self.merge else ", and each counts on its own."
            tied = ", ".join(f"{np.count_nonzero(p.tied)} {way.replace('_', ' ')}" for way, p, *_ in ways)
            note += f" Ties with a wrong candidate (queries: {tied}) count as the mean over all their orders."
            yield Detail("examples", {
                "kind": "tiles", "picture": "tiles", "tile": self.tile, "columns": COLUMNS,
                "note": note,
                "image_to_text": [self._image_query(w, int(asked[q]), place(i2t, q), g, tiles) for w, q in images],
                "text_to_image": [self._text_query(w, q, place(t2i, q), g, tiles) for w, q in texts],
            })  # fmt: skip
            yield Picture("tiles", sheet(self._thumbnails(tiles, g.batch_rows), COLUMNS))

    def _embed(self, params) -> Gallery:
        images, texts, pairs, keys, batch_rows, seen = [], [], [], [], [], {}
        for batch in self.context.batches(self.data, self.batch_size):
            image = select(batch, "image", who="retrieval")
            rows = self.context.rows(self._names(batch, image["_valid"]))
            # Place in the filled-up global batch -> number among all real rows.
            number = {int(place): n for n, place in enumerate(rows["place"], start=sum(batch_rows))}
            keys += [as_text(key) for key in rows["key"]]
            images.append(unit_rows(self.context.embed(params, image)["image"]))
            batch_rows.append(len(images[-1]))

            text = self._captions(batch)
            z_RxD = self.context.embed(params, {n: text[n] for n in ("text", "_valid")})["text"]
            rows = self.context.rows(text)
            for ids, z, place in zip(rows["text"], z_RxD, rows["place"], strict=True):
                if ids.tobytes() not in seen:
                    seen[ids.tobytes()] = len(seen)
                    texts.append((z, ids))
                pairs.append((number[int(place)], seen[ids.tobytes()]))
        if not pairs:
            raise UserError("retrieval found no captioned pictures in its data; check the split and the ops")
        pairs_Mx2 = np.array(pairs, np.int64)
        z_UxD, ids_UxT = (np.stack(x) for x in zip(*texts))
        if self.merge:  # a picture with the same caption twice has it once
            pairs_Mx2 = np.unique(pairs_Mx2, axis=0)
        return Gallery(np.concatenate(images), unit_rows(z_UxD), pairs_Mx2, ids_UxT, keys, batch_rows)

    def _place(self, size: int) -> np.ndarray:
        return (self.context.process_index * size + np.arange(size)).astype(np.int32)

    def _names(self, batch: Batch, valid_B: np.ndarray) -> dict[str, np.ndarray]:
        return {"place": self._place(len(valid_B)), "key": key_rows(batch, len(valid_B)), "_valid": valid_B}

    def _captions(self, batch: Batch) -> dict[str, np.ndarray]:
        """Texts flattened to [B * K, T], the place of their picture, and which are real."""
        arrays = select(batch, "text", who="retrieval")
        text_BxKxT = arrays["text"] if arrays["text"].ndim == 3 else arrays["text"][:, None]
        b, k, length = text_BxKxT.shape
        real_BxK = arrays["_valid"][:, None] & (text_BxKxT != 0).any(-1)
        if "_captions" in batch:
            real_BxK &= np.arange(k) < np.asarray(batch["_captions"])[:, None]
        return {
            "text": text_BxKxT.reshape(b * k, length).astype(np.int32),
            "place": np.repeat(self._place(b), k),
            "_valid": real_BxK.reshape(-1),
        }

    def _image_query(self, which: str, i: int, rank: float, g: Gallery, tiles: dict) -> dict:
        score_U = g.texts_UxD @ g.images_NxD[i]
        own = g.pairs_Mx2[g.pairs_Mx2[:, 0] == i, 1].tolist()
        first = np.argsort(-score_U, kind="stable")[: self.shown].tolist()
        found = [{"text": self._words(g.ids_UxT[t]), "score": float(score_U[t]), "right": t in own} for t in first]
        return {
            "which": which, "rank": rank, "key": g.keys[i], "tile": tiles.setdefault(i, len(tiles)),
            "captions": [self._words(g.ids_UxT[t]) for t in own],
            "found": found,
        }  # fmt: skip

    def _text_query(self, which: str, m: int, rank: float, g: Gallery, tiles: dict) -> dict:
        i, t = g.pairs_Mx2[m].tolist()
        score_N = g.images_NxD @ g.texts_UxD[t]
        right = g.pairs_Mx2[g.pairs_Mx2[:, 1] == t, 0].tolist() if self.merge else [i]
        found = []
        for j in np.argsort(-score_N, kind="stable")[: self.shown].tolist():
            place = tiles.setdefault(j, len(tiles))
            found.append({"tile": place, "key": g.keys[j], "score": float(score_N[j]), "right": j in right})
        return {
            "which": which, "rank": rank, "key": g.keys[i], "tile": tiles.setdefault(i, len(tiles)),
            "text": self._words(g.ids_UxT[t]), "found": found,
        }  # fmt: skip

    def _words(self, ids: np.ndarray) -> str:
        return self.context.tokenizer.decode([int(i) for i in ids if i])

    def _thumbnails(self, tiles: Mapping[int, int], batch_rows: Sequence[int]) -> list[np.ndarray]:
        """The wanted pictures, scaled down, in the order of their places.

        A second pass over the data, as far as needed: it costs decoding, but no memory for pictures that are not
        shown.
        """
        out: dict[int, np.ndarray] = {}
        start = 0
        for batch, count in zip(self.context.batches(self.data, self.batch_size), batch_rows, strict=False):
            wanted = [i for i in tiles if start <= i < start + count]
            if wanted:
                image = self.context.rows(select(batch, "image", who="retrieval"))["image"]
                out |= {tiles[i]: thumbnail(np.asarray(image[i - start], np.uint8), self.tile) for i in wanted}
            start += count
            if len(out) == len(tiles):
                break
        return [out[place] for place in range(len(tiles))]


def _turn(turns: Counter[str], name: str) -> int:
    """How often a name has come before."""
    turns[name] += 1
    return turns[name] - 1


def place(places: Places, query: int) -> float:
    """Where the first right candidate of a query stands, counted from 1, to a tenth."""
    rank = round(1 + float(places.rank[query]), 1)
    return int(rank) if rank == int(rank) else rank


def pick(places: Places, picture: np.ndarray, count: int) -> list[tuple[str, int]]:
    """(`best` | `median` | `worst`, query), `count` of each: by rank, then by score; no picture twice."""
    order = np.lexsort((-places.score, places.rank))
    from_middle = np.argsort(np.abs(np.arange(len(order)) - len(order) // 2), kind="stable")
    out, taken = {"best": [], "median": [], "worst": []}, set()
    for which, queries in (("best", order), ("worst", order[::-1]), ("median", order[from_middle])):
        for q in queries.tolist():
            if len(out[which]) < count and int(picture[q]) not in taken:
                taken.add(int(picture[q]))
                out[which].append(q)
    return [(which, q) for which, queries in out.items() for q in queries]
