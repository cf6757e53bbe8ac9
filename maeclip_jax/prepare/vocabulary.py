"""Trains a SentencePiece vocabulary on the captions of a prepared data set.

    python -m maeclip_jax.prepare.vocabulary --name photos --out data/photos/words.model [--size 4000] [--data_dir data]

The data set may be in a bucket (--data_dir gs://bucket/data), and so may --out. Use it with
--config.tokenizer.type=sentencepiece --config.tokenizer.path=data/photos/words.model. With --end it has an end of text,
which --config.tokenizer.eos=True puts last; a CLIP of `transformers` pools its texts there.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

from etils import epath

from maeclip_jax import cli
from maeclip_jax.errors import UserError, storage

# The id of the end of text. 2 would not do: `transformers` takes a CLIP's highest id for the end then.
END = 3
_LONGEST = 1 << 30  # bytes of a caption; by default SentencePiece passes over those above 4,192
_RANGE = 16 << 20  # bytes of neighbouring records that are read at a time; of a bucket, by one request


def train(captions: Iterable[str], size: int, *, end: bool = False) -> bytes:
    """A unigram model of at most `size` pieces, lower-cased, padding at 0; as the bytes of a .model file.

    `end`: whether </s> is one of them. A small collection gives fewer pieces than requested. Raises UserError if there
    are no captions, or size < 300.
    """
    import sentencepiece

    if size < 300:
        raise UserError(f"--size {size} is too small for letters and words; valid: 300 and above")
    model, captions = io.BytesIO(), iter(captions)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=captions, model_writer=model, vocab_size=size, hard_vocab_limit=False, pad_id=0, unk_id=1,
            bos_id=-1, eos_id=END if end else -1, normalization_rule_name="nmt_nfkc_cf", byte_fallback=False,
            max_sentence_length=_LONGEST, num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as e:
        raise UserError(f"no vocabulary could be trained: {' '.join(str(e).split())}") from None
    return model.getvalue()


def captions_of(name: str, split: str, data_dir: str) -> Iterable[str]:
    """Every caption of a split, in order."""
    from maeclip_jax.data import source

    records = source.make({"kind": "tfds", "dir": data_dir, "name": name, "split": split})
    step = max(1, int(_RANGE / max(1.0, records.record_bytes)))
    for begin in range(0, len(records), step):
        for i, data in enumerate(records.read(begin, min(begin + step, len(records))), begin):
            record = records.record(data, i)
            yield from record.get("texts") or [record["text"]]


def run(argv: list[str]) -> None:
    """The command line."""
    parser = cli.Parser("maeclip_jax.prepare.vocabulary", __doc__)
    parser.add_argument("--name", required=True, help="data set, such as photos")
    parser.add_argument("--split", default="train", help="only words of this split are learnt (default: train)")
    parser.add_argument("--data_dir", default="", help="default: $MAECLIP_DATA_DIR or data")
    parser.add_argument("--size", type=int, default=4000, help="largest number of pieces (default: 4000)")
    parser.add_argument("--end", action="store_true", help="with an end of text, </s>, for config.tokenizer.eos=True")
    parser.add_argument("--out", required=True, help="the .model file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    args = parser.parse_args(argv)
    if epath.Path(args.out).exists() and not args.overwrite:
        raise UserError(
            f"--out {args.out} is there: runs may have been trained with it; choose another name, or add --overwrite"
        )
    model = train(captions_of(args.name, args.split, args.data_dir), args.size, end=args.end)
    with storage.writing(args.out, len(model)):
        epath.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        epath.Path(args.out).write_bytes(model)
    import sentencepiece

    size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    print(f"{args.out}: {size} pieces from the captions of {args.name}, split {args.split}")


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: run(sys.argv[1:])))
