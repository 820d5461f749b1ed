#!/usr/bin/env python3
"""sync(2) and syncfs(2) on a block device's mount: what was written before is there after the server was killed.

Linux tells FUSE servers of block devices from 6.18 on. Without a sync what is killed so early loses the file, which
is looked at first: else nothing here could fail. fsync of the root directory, which these calls become, is tried
on an image's mount, too.
"""
import contextlib
import ctypes
import os
import pathlib
import re

import harness as h

SYNCFS_SINCE = (6, 18)
RING_SWITCH = pathlib.Path("/sys/module/fuse/parameters/enable_uring")
CONTENT = os.urandom(3 << 20)
libc = ctypes.CDLL(None, use_errno=True)


def kernel_version():
    return tuple(int(part) for part in re.match(r"(\d+)\.(\d+)", os.uname().release).groups())


def syncfs(volume):
    directory = os.open(volume.mount_point, os.O_RDONLY)
    try:
        status = libc.syncfs(directory)
        h.check(status == 0, f"syncfs: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(directory)


def survives(volume, make_durable):
    """Whether a new file is there, and whole, after make_durable(), a kill of the server and a recovery."""
    volume.mount()
    path = volume.path("file")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    h.fsync_directory(volume.mount_point)
    path.write_bytes(CONTENT)
    make_durable()
    volume.kill()
    volume.clear_dead_mount()
    volume.mount()
    there = path.exists()
    h.check(not there or path.read_bytes() == CONTENT or make_durable is nothing, "the file has other bytes")
    volume.umount()
    volume.fsck()
    return there


def nothing():
    pass


def hears_of_sync(volume):
    volume.mount()
    found = volume.statistics()["fuse"]["hears_of_sync"]
    volume.umount()
    return found


def test(space):
    image = space.volume(size="256M", options="commit=300", name="image")
    h.check(survives(image, lambda: h.fsync_directory(image.mount_point)), "lost after an fsync of the root")
    if kernel_version() < SYNCFS_SINCE:
        h.skip("the kernel tells of no sync(2): it is older than 6.18")
    for options in ("commit=300", "commit=300,io_uring"):
        if "io_uring" in options and not (RING_SWITCH.exists() and RING_SWITCH.read_text().strip() == "Y"):
            h.note(f"  left out: io_uring ({RING_SWITCH} is not Y)")
            continue
        if "io_uring" in options and "serves -o io_uring" not in h.run_command(h.command(), "--version"):
            h.note("  left out: io_uring (not with this libfuse)")
            continue
        on_a_device(space, options)


def on_a_device(space, options):
    volume = space.volume(size="256M", options=options, name=options.replace(",", "-"))
    with h.loop_device(volume.image) as device:
        volume.image = device
        try:
            if not hears_of_sync(volume):
                h.note(f"  left out: {options} (this libfuse reads requests by itself, and does not know FUSE_SYNCFS)")
                return
            h.check(not survives(volume, nothing), "a file was durable by itself: nothing can be told by this test")
            # More than once: a kernel that heard ENOSYS never asks again.
            for name, call in (("syncfs", lambda: syncfs(volume)), ("sync", os.sync)) * 2:
                h.check(survives(volume, call), f"lost after {name}")
        finally:
            volume.dispose()


h.run(test)
