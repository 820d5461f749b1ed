#!/usr/bin/env python3
"""Copies while devices fail: bad places, aborted commands, a copy command that is withdrawn."""
import lab as lab_frame
from disks import GOOD_LIMITS, MIB, NvmeNamespace, VirtioDisk

JOB_SECONDS_MAX = 300
VOLUME_BYTES = 512 * MIB
# A volume fills from its front: 64 MiB of source, and behind it its copy.
REFERENCE_BYTES = 64 * MIB
WITHIN_SEGMENT = MIB // 2
SOURCE_PLACES = [offset * MIB + WITHIN_SEGMENT for offset in range(16, 64, 8)]
COPY_PLACES = [offset * MIB + WITHIN_SEGMENT for offset in range(88, 128, 8)]


def test(lab):
    lab.set_disks(
        NvmeNamespace("nvmeonce", VOLUME_BYTES, 4096, **GOOD_LIMITS, fail_reads_once=SOURCE_PLACES,
                      fail_writes_once=COPY_PLACES),
        NvmeNamespace("nvmebad", VOLUME_BYTES, 4096, **GOOD_LIMITS, fail_reads=SOURCE_PLACES),
        NvmeNamespace("nvmereset", VOLUME_BYTES, 4096, bytes_per_second=20_000_000, **GOOD_LIMITS),
        VirtioDisk("liodisk", VOLUME_BYTES))
    lab.make_reference(REFERENCE_BYTES)
    lab.run("fault_job.py", JOB_SECONDS_MAX, engines=lab_frame.engines())


lab_frame.run(test)
