#!/bin/sh
# On each of two hosts: demo_2_hosts_torchrun.sh NODE_RANK HOST_0. One process a host: splitrank starts its ranks itself.
# torchrun's own store listens at --master-port, splitrank at the port behind it. --max-restarts starts all hosts again
# when one has failed.
set -eu
: "${SPLITRANK_SECRET:?the same 16 bytes or more on both hosts}"
exec torchrun --nnodes 2 --node-rank "$1" --nproc-per-node 1 --master-addr "$2" --master-port 29500 --max-restarts 3 \
    -m splitrank.serving serve --pp 2
