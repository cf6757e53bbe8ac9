"""Training and evaluation of one experiment, from a config to a workdir.

Start with `train`, the loop, and `step`, which builds the compiled train step and holds the update. `setup` makes what
both training and evaluation need: objective, mesh and parameters. `optim` has optimizers and learning-rate schedules,
`checkpoint` saves and restores, `warm_start` begins with other parameters, `feed` places batches on the devices, `stop`
handles SIGTERM and Ctrl-C. `evaluate` runs the evaluators of a config, `features` is what they may ask for, `model` is
a trained model as an object for notebooks, `export` writes one as a folder that other libraries load. What a run writes
about itself: `log` (scalars and pictures) to its `sinks`, `clock`, `throughput`, `costs`, `trace`, `summary`,
`startup`, `flops`, `storage_bill` (what a bucket will cost), and on request a `profile` of some steps.
The loop knows no objective.
"""
