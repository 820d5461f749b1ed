#!/usr/bin/env python3
"""The power is cut in the middle of copying: nothing durable is lost, no copy shows wrong bytes.

QEMU is killed at a random moment; the next boot checks, and copies on. Not a reset: QEMU 7.2 crashes by
itself when it is reset with Copy commands under way.
COFS_LAB_CUTS: how often (default 3).
"""
import os
import time

import lab as lab_frame
from disks import GOOD_LIMITS, MIB, NvmeNamespace, VirtioDisk

JOB_SECONDS_MAX = 240
VOLUME_BYTES = 512 * MIB
REFERENCE_BYTES = 32 * MIB
CUTS = int(os.environ.get("COFS_LAB_CUTS", 3))
CUT_SECONDS_MAX = 2.0


def test(lab):
    lab.set_disks(NvmeNamespace("nvme", VOLUME_BYTES, 4096, bytes_per_second=40_000_000, **GOOD_LIMITS),
                  VirtioDisk("liodisk", VOLUME_BYTES))
    lab.make_reference(REFERENCE_BYTES)
    arguments = {"engines": lab_frame.engines(), "first": True, "last": False, "round": 0}
    guest = lab.boot("power_job.py", **arguments)
    for cut in range(CUTS):
        guest.wait_for_file(f"copying-{cut}", JOB_SECONDS_MAX)
        pause = lab.random.uniform(0, CUT_SECONDS_MAX)
        time.sleep(pause)
        arguments |= {"first": False, "last": cut + 1 == CUTS, "round": cut + 1}
        print(f"cut {cut}: QEMU is killed after {pause:.2f} s", flush=True)
        guest.kill()
        guest = lab.boot("power_job.py", **arguments)
    lab.finish(guest, "power_job.py", JOB_SECONDS_MAX)


lab_frame.run(test)
