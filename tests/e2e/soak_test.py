#!/usr/bin/env python3
"""Random operations on a nearly full volume, garbage collection always on, kill -9 of the server every few seconds.

It is tools/bench/soak, short. COFS_SOAK_SECONDS: how long (default 120).
"""
import os
import pathlib
import sys

SOAK = pathlib.Path(__file__).resolve().parents[2] / "tools/bench/soak"
os.execv(sys.executable, [sys.executable, str(SOAK), "--seconds", os.environ.get("COFS_SOAK_SECONDS", "120")])
