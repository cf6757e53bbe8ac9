"""Before a run: what this machine has (`doctor`), and any train step compiled for a TPU slice one does not have.

`topology` knows slices and chips, `hlo` counts a compiled program from its text, `estimate` compiles and puts the
figures together, `command` is the command line. Times are the compiler's own estimates: they rank programs and do not
replace a TPU.
"""
