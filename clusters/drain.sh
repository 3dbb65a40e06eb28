#!/bin/sh
# Tells Ray that the node of this pod goes in so many seconds: nothing more is sent to it, and what it works on may end.
set -eu
seconds="$1"
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod is being removed" \
    --deadline-remaining-seconds "$seconds"
sleep "$seconds"
