#!/usr/bin/env python3
"""cp on every kind of device: by an engine of the device where there is one, by the host elsewhere."""
import lab as lab_frame
from disks import GOOD_LIMITS, GOOD_LIMITS_512, MIB, NvmeNamespace, ScsiDisk, VirtioDisk

JOB_SECONDS_MAX = 600
VOLUME_BYTES = 1024 * MIB
FRONT_BYTES = 384 * MIB       # of the linear volume: its border lies within the first copy
REFERENCE_BYTES = 257 * MIB


def test(lab):
    lab.set_disks(
        NvmeNamespace("nvme4k", VOLUME_BYTES, 4096, **GOOD_LIMITS),
        NvmeNamespace("nvme512", VOLUME_BYTES, 512, **GOOD_LIMITS_512),
        NvmeNamespace("nvmetiny", VOLUME_BYTES, 4096),
        NvmeNamespace("nvmezero", VOLUME_BYTES, 4096, mcl=0),
        NvmeNamespace("nvmepart", VOLUME_BYTES + 4 * MIB, 512, **GOOD_LIMITS_512),
        NvmeNamespace("nvmefront", FRONT_BYTES, 4096, **GOOD_LIMITS),
        NvmeNamespace("nvmeback", VOLUME_BYTES - FRONT_BYTES, 4096, **GOOD_LIMITS),
        VirtioDisk("liodisk", VOLUME_BYTES),
        ScsiDisk("plain", VOLUME_BYTES))
    lab.make_reference(REFERENCE_BYTES)
    lab.run("copy_job.py", JOB_SECONDS_MAX, engines=lab_frame.engines())


lab_frame.run(test)
