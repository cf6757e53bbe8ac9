"""Making data sets: image-text pairs of any usual layout become TFDS data sets, with an account of every record.

`command` is `python -m maeclip_jax.prepare`. `crawl` finds out what a source is, `division` cuts it into units of work,
`records` reads their records, `tables` the csv and jsonl among them, `remote` the files that are in buckets,
`image_text` checks and stores a pair. `assembly` writes units (`unit_folder`) with several processes, packs their
records into shards (`packing`) where the data set will be (`outlet`), and survives being killed; `image_text_beam` does
the same on Apache Beam. `manifest` counts. `vocabulary` trains a tokenizer. `builders` has a TFDS builder for each
labelled, masked or question set.
"""
