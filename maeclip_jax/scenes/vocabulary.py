"""The small WordPiece vocabulary of the data set: every word that captions, questions and answers can hold.

    python -m maeclip_jax.scenes.vocabulary        # writes maeclip_jax/data/vocab/scenes.txt

One token a line, in the format of BERT; the line number is the id and 0 is [PAD]. Single letters and digits, whole and
as continuations, spell any other English word, so that only rare symbols become [UNK].
"""

from __future__ import annotations

import pathlib
import re
import string

from maeclip_jax.scenes import question, world
from maeclip_jax.scenes.caption import NUMBERS, OPENINGS, PLACES
from maeclip_jax.scenes.stream import scene
from maeclip_jax.scenes.world import SceneSpec

FILE = pathlib.Path(__file__).parents[1] / "data" / "vocab" / "scenes.txt"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Of the usual zero-shot prompts, which are not captions of this data set.
PROMPTS = (
    "a bad good blurry bright clean close up cropped dark large low resolution rendering sketch painting this that my "
    "your one many some thing shape figure colored coloured color background with and or not no yes in on of it"
)


def words() -> list[str]:
    """All words of the tables and of what the fullest data set says in a few thousand scenes, sorted."""
    texts = [
        *world.SHAPES, *question.PLURALS, *world.COLOUR_NAMES, *world.SIZES, *world.TEXTURES, *NUMBERS, *OPENINGS,
        *PLACES.values(), *question.OPPOSITE, *question.ATTRIBUTES, PROMPTS,
    ]  # fmt: skip
    spec = SceneSpec(
        resolution=24, objects=(1, 5), shapes=len(world.SHAPES), colours=len(world.COLOURS),
        textures=len(world.TEXTURES), captions=5, questions=8, caption_noise=0.1,
    )  # fmt: skip
    for index in range(2000):
        record = scene(spec, 0, index)
        texts += record["texts"]
        texts += [q[k] for q in record["questions"] for k in ("question", "answer")]
    return sorted({word for text in texts for word in re.findall("[a-z]+", text)})


def tokens() -> list[str]:
    letters = string.digits + string.ascii_lowercase
    listed = [*SPECIAL, *string.punctuation, *letters, *("##" + c for c in letters), *words()]
    return list(dict.fromkeys(listed))


if __name__ == "__main__":
    FILE.write_text("\n".join(tokens()) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(tokens())} tokens")
