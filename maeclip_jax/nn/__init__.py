"""Parts of models: pure functions and plain Flax modules that import nothing else of the project.

`mask` draws and applies random masks, `pixels` cuts pictures into patches, `embed` makes tokens of them; `dense`,
`attention` and `transformer` are the layers, `pool` makes one vector of many tokens, `tower` puts encoders and decoders
together.
"""
