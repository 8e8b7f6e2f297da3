#!/bin/sh
# Starts one worker of a training run; the arguments are flags of `deeplab train`.
# Kubernetes numbers the pods of an indexed job. HOSTS is the address of a pod, with %g
# for its number.
set -eu
workers=$(seq -s, -f "\"$HOSTS\"" 0 $((WORKERS - 1)))
task="{\"type\": \"worker\", \"index\": $JOB_COMPLETION_INDEX}"
export TF_CONFIG="{\"cluster\": {\"worker\": [$workers]}, \"task\": $task}"
exec deeplab train "$@"
