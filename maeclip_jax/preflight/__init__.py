"""Pre-flight: the real train step of any experiment, compiled for a TPU slice one does not have.

`topology` knows slices and chips, `hlo` counts a compiled program from its text, `estimate` compiles and puts the
figures together, `__main__` is the command. Times are the compiler's own estimates: they rank programs and do not
replace a TPU.
"""
