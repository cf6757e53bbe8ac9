"""Before a run: what this machine has (`doctor`), and any train step compiled for a TPU slice one does not have.

`topology` knows slices and chips; `programs` are what an experiment runs, `compilation` compiles them, `program_text`
reads what came out and `hlo` counts it; `estimate` puts the figures together, with a `remedy` for what has no room;
`command` is the command line. Times are the compiler's own estimates: they rank programs and do not
replace a TPU.
"""
