#!/usr/bin/env bash
# Sends the code and installs its packages on every worker; repeated, it takes seconds. EXTRAS=tpu: extras of setup.cfg.
# REMOTE_PYTHON=/path: an interpreter of the workers that has the packages; nothing is installed then.
source "$(dirname "$0")/slice.sh"
need NAME ZONE
"$REPOSITORY/tpu/push.sh"
on_workers "$(remote install)"
