"""The question as a command: at which size and which diversity does self-supervision stop helping CLIP?

`plan` turns axes into runs and writes them down before the first; `work` trains them, `results` keeps what they
measured as small files, `statistics` and its neighbours turn those into effects with intervals, `page` shows them.
`subsets` makes smaller data sets of larger ones. `python -m maeclip_jax.study --help`.
"""
