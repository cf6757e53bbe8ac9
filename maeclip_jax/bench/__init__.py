"""What things cost on this machine: `python -m maeclip_jax.bench NAME ...`, each with --help and --json=FILE.

step          a train step on one batch, and the experiment's input alone: images/s, MFU, memory, open_clip's step
input         decoding and cropping of JPEG files, ours against Pillow (and tf.data if it is installed)
storage       training rows from a bucket and a disk, in blocks and record by record
probe         a linear probe on 50,000 x 768 features with 1,000 classes
startup       restart to first step, with a cold and with a warm compilation cache
scenes        drawn pictures per second and core
sweep         runs an hour, one after the other and side by side
microbatches  memory and speed of a batch in parts, whole, and of a batch of one part

Each of these files is one benchmark with `run(argv)`; figures leave in the form of `figures.write`. Ratios are of one
run. `bucket` is a storage server on this machine, on which tests and benchmarks of gs:// run.
"""
