"""What the formats stand on: the files of a source, and what can be taken out of them. Nothing here imports a format.

`listing` lists a source, `names` knows what names of files tell, and `remote` opens those in buckets. `tables`,
`json_arrays`, `batches`, `tarball` and `members` take rows and samples out of files. `img2dataset` knows what that tool
writes beside its shards, `captions` which field holds captions, `pictures` how to fetch pictures that rows only name.
`units` has a source divided, `raw` a record as it is read.
"""
