# Targets over the scripts here. Variables given to make (NAME=, ZONE=, ...) reach them as environment: tpu/README.md.
.PHONY: tpu-create tpu-setup tpu-push tpu-run tpu-status tpu-logs tpu-stop tpu-delete tpu-babysit tpu-sweep

tpu-create:  ## make a TPU slice: NAME= ZONE= TYPE=v4-128 [SPOT=1] [QUEUED=1] [SLICES=2]; DRY_RUN=1 prints the commands (tpu/README.md)
	@tpu/create.sh

tpu-setup:  ## send the code to all workers of NAME= ZONE= and install its packages (tpu-push: only send)
	@tpu/setup.sh

tpu-push:
	@tpu/push.sh

tpu-run:  ## start CONFIG= WORKDIR=gs://... [ARGS=] [DATA=gs://...] on all workers of NAME= ZONE=, detached
	@tpu/run.sh

tpu-status:  ## the state of NAME= ZONE= and of the job on every worker
	@tpu/status.sh

tpu-logs:  ## follow the log of worker 0 (WORKER=3, WORKER=all) of NAME= ZONE=
	@tpu/logs.sh -f

tpu-stop:  ## save and stop the job on NAME= ZONE=
	@tpu/stop.sh

tpu-delete:  ## delete NAME= ZONE=
	@tpu/delete.sh

tpu-babysit:  ## see a run through: create or recreate, set up, run, until finished; variables of tpu-create and tpu-run
	@tpu/babysit.sh

tpu-sweep:  ## see all runs of SWEEP= through, in ROOT=gs://...; variables of tpu-babysit
	@tpu/sweep.sh
