#!/usr/bin/env python3
"""What time does to copies: commands that are answered too late, a server killed with commands under way, and
how near the filesystem's copy rate comes to that of the commands themselves.
"""
import lab as lab_frame
from disks import GOOD_LIMITS, MIB, NvmeNamespace

JOB_SECONDS_MAX = 240
REFERENCE_BYTES = 256 * MIB


def test(lab):
    lab.set_disks(
        # Large, so that its segments are, as on real disks. The emulation is a third slower where ranges are longer than
        # this (each is read to memory as a whole): what is compared has ranges of the same length.
        NvmeNamespace("nvmefast", 16_384 * MIB, 4096, **(GOOD_LIMITS | {"mssrl": MIB // 4096})),
        # Eight commands of 1 MiB, read and written, take 4 s.
        NvmeNamespace("nvmeslow", 512 * MIB, 4096, bytes_per_second=4 * MIB, **GOOD_LIMITS))
    lab.make_reference(REFERENCE_BYTES)
    lab.run("timing_job.py", JOB_SECONDS_MAX, engines=lab_frame.engines())


lab_frame.run(test)
