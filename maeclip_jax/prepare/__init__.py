"""Making data sets: image-text pairs of any usual layout become TFDS data sets, with an account of every record.

`command` is `python -m maeclip_jax.prepare`. `crawl` finds out what a source is and divides it into units of work, and
`records` reads a unit. Both ask `formats`, which has a file for each layout: it recognises it, cuts it and reads it.
`image_text` checks and stores a pair. `assembly` writes units (`unit_folder`) with several processes, packs their
records into shards (`packing`) where the data set will be (`outlet`), and survives being killed; `image_text_beam` does
the same on Apache Beam. `repeats` finds keys and pictures that came before, `near` those of an evaluation set, and
`suspects` names what is odd. `manifest` counts, and `sheet` shows some records of a `sample`. `vocabulary` trains a
tokenizer. `builders` has a TFDS builder for each labelled, masked or question set.
"""
