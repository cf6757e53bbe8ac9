"""Devices, hosts and how arrays are split over them.

`sharding` is the mesh, the specs of parameters by path rules, and the placement of batches. `joining` connects the
processes of a run; before that `pod` finds out which there are and `rollcall` checks that all came and run the same.
`watchdog` prints where a run hangs, `terminal` what a person reads, and `sleep` leaves out time in which the machine
slept. `machine` says what this machine has and sets up jax on it; `chips` knows the peak FLOP/s of accelerators.
"""
