"""Parts of models: pure functions and plain Flax modules that import nothing else of the project.

`mask` draws and applies random masks, `pixels` cuts pictures into patches, `embed` makes tokens of them; `dense` and
`transformer` are the layers, `mesh` says how they lie on many devices. `attention`, `attention_layer` and `mlp` are
kernels (`..._device` has what a device does of the latter two, `kernels` and `norm` what they share). `pool` makes one
vector of many tokens, `tower` puts encoders and decoders together.
"""
