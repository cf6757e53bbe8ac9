"""Reading: from a data config to batches of numpy arrays.

Start with `pipeline`, the contract of a batch. `source` is where records come from, `ops` what happens to a record
(`image_ops`, `mask_ops`, `text_ops`, `vtab`), `order` the order of examples as a function of (seed, epoch, index),
`rows` the work of a thread. `tokenizer` makes ids of texts, `decode` pixels of files, `questions` and `answers` serve
question answering, `preprocess` is what a loaded model does to one picture or text. Making data sets is `prepare`.
"""
