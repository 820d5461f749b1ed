#!/usr/bin/env python3
"""Garbage collection on a device that copies: four fifths full, a tenth of the data taking nine tenths of the
overwrites. The host moves next to nothing of what is relocated; beside it the same work with the host copying.

COFS_LAB_GC_MIB: the volume's size (default 256; the whole form: 4096). COFS_LAB_GC_TURNS: how often its size
is written (default 3).
"""
import os

import lab as lab_frame
from disks import GOOD_LIMITS, MIB, NvmeNamespace

VOLUME_MIB = int(os.environ.get("COFS_LAB_GC_MIB", 256))
TURNS = float(os.environ.get("COFS_LAB_GC_TURNS", 3))
JOB_SECONDS_MAX = 840 * max(1, VOLUME_MIB * TURNS / 768)
REFERENCE_BYTES = 4 * MIB


def test(lab):
    lab.set_disks(NvmeNamespace("bydevice", VOLUME_MIB * MIB, 4096, **GOOD_LIMITS),
                  NvmeNamespace("byhost", VOLUME_MIB * MIB, 4096, **GOOD_LIMITS))
    lab.make_reference(REFERENCE_BYTES)
    lab.run("gc_job.py", JOB_SECONDS_MAX, engines=lab_frame.engines(), turns=TURNS)


lab_frame.run(test)
