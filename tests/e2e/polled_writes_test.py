#!/usr/bin/env python3
"""A server on a fast block device looks for the end of durable writes before it sleeps, by either transport, and never with
`-o nobusy_poll`; what is synced is there either way."""
import os
import tempfile
import time

import harness as h

MEMORY = "/dev/shm"
RECORD = 4096
ROUND = 500
PATIENCE_SECONDS = 60


def append(volume, name, count):
    with open(volume.path(name), "ab") as file:
        for i in range(count):
            file.write(b"%08d" % i * (RECORD // 8))
            file.flush()
            os.fsync(file.fileno())
    return volume.statistics()["io"]


def check_polled(volume, name):
    end = time.monotonic() + PATIENCE_SECONDS
    told = append(volume, name, ROUND)
    while told["polled_writes"] == 0 and time.monotonic() < end:
        told = append(volume, name, ROUND)
    h.check(told["polled_writes"] > 0, f"never looks: {told}")
    h.check(told["polled_writes"] <= told["durable_writes"], f"counts too many: {told}")
    h.note(f"{volume.options or 'by /dev/fuse'}: {told['polled_writes']} of {told['durable_writes']} durable writes")


def check_file(volume, name):
    data = volume.path(name).read_bytes()
    h.check(len(data) > 0 and len(data) % (ROUND * RECORD) == 0, f"{name}: {len(data)} bytes")
    for at in range(0, len(data), RECORD):
        number = at // RECORD % ROUND
        h.check(data[at:at + RECORD] == b"%08d" % number * (RECORD // 8), f"{name}: other data at {at}")


def test(space):
    if os.geteuid() != 0:
        h.skip("needs root: mounts a block device")
    if len(os.sched_getaffinity(0)) < 2 or not os.path.isdir(MEMORY):
        h.skip("needs two CPUs, and memory to be a fast device")
    with tempfile.TemporaryDirectory(prefix="cofs-test-", dir=MEMORY) as directory:
        volume = h.Volume(directory, size="256M")
        with h.loop_device(volume.image) as device:
            volume.image = device
            try:
                test_device(volume)
            finally:
                volume.dispose()


def test_device(volume):
    names = ["device"]
    volume.mount()
    check_polled(volume, "device")
    volume.umount()
    if "serves -o io_uring" in h.run_command(h.command(), "--version"):
        with h.io_uring_allowed():
            volume.options = "io_uring"
            try:
                volume.mount()
            except h.Failure:
                h.note("io_uring: " + volume.log.read_text(errors="replace").strip().splitlines()[-1])
            else:
                names.append("io_uring")
                check_polled(volume, "io_uring")
                volume.umount()
    volume.options = "nobusy_poll"
    volume.mount()
    told = append(volume, "forbidden", ROUND)
    h.check(told["polled_writes"] == 0, f"looks though it must not: {told}")
    for name in (*names, "forbidden"):
        check_file(volume, name)
    volume.umount()
    volume.fsck()


h.run(test)
