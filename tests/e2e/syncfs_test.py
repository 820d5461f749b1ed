#!/usr/bin/env python3
"""syncfs(2) of a mounted block device makes everything durable: what was written before it is there after kill -9.

The kernel passes it to fuseblk servers only, from Linux 6.18 on, and only the pinned libfuse has it served; elsewhere
the test is skipped. By both transports where io_uring is allowed.
"""
import ctypes
import os
import pathlib
import subprocess

import harness as h

LIBC = ctypes.CDLL(None, use_errno=True)
SWITCH = pathlib.Path("/sys/module/fuse/parameters/enable_uring")
BYTES = 3_000_000


def syncfs(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        h.check(LIBC.syncfs(fd) == 0, f"syncfs: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)


def check_transport(volume, options, space):
    volume.options = options
    volume.mount()
    if not volume.statistics()["fuse"]["syncfs"]:
        h.skip("this libfuse does not serve syncfs (build with -DCOFS_LIBFUSE=pinned)")
    name, data = f"by {options}", space.random.randbytes(BYTES)
    volume.path(name).write_bytes(data)
    commits = volume.statistics()["io"]["commits"]
    syncfs(volume.mount_point)
    h.check(volume.statistics()["io"]["commits"] > commits, "syncfs did not commit")
    volume.kill()
    volume.clear_dead_mount()
    volume.mount()
    h.check(volume.path(name).read_bytes() == data, "what was written before syncfs is not there after a crash")
    volume.umount()


def test(space):
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if release < (6, 18):
        h.skip("this kernel does not pass syncfs to servers (Linux 6.18 does, of block devices)")
    if os.geteuid() != 0:
        h.skip("a loop device needs root")
    volume = space.volume(size="256M")
    done = subprocess.run(["losetup", "--find", "--show", str(volume.image)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        h.skip(f"no loop device can be had: {done.stderr.strip()}")
    volume.image = pathlib.Path(done.stdout.strip())
    try:
        check_transport(volume, "commit=300", space)
        if SWITCH.exists() and SWITCH.read_text().strip() == "Y":
            check_transport(volume, "commit=300,io_uring", space)
        volume.fsck()
    finally:
        volume.dispose()
        subprocess.run(["losetup", "-d", str(volume.image)], check=False)


h.run(test)
