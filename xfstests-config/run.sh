#!/bin/sh
# Runs xfstests or pjdfstest on cofs: run.sh --help.
exec python3 -B "$(dirname "$0")/conformance.py" "$@"
