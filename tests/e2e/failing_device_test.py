#!/usr/bin/env python3
"""A device that fails under a mount and comes back: everything after that is an error, nothing hangs, no wrong byte is
read, and the next mount has all that was synced. And one that is write-protected. So do the tests of xfstests that ask for dm-error, here without it:
a loop device is cut to nothing (xfstests-config/resize-loop).
"""
import contextlib
import errno
import mmap
import os

import harness as h

BLOCK = 4096
SIZE = 2 << 20
RESIZE = h.ROOT / "xfstests-config/resize-loop"
LEFT_BYTES = 512  # less than a block


def resize(device, size):
    h.run_command(RESIZE, device, size)


def error_of(action):
    """The errno of an action that must fail."""
    try:
        action()
    except OSError as problem:
        return problem.errno
    return 0


def write_and_sync(path, content):
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), content, 0)
        os.fsync(file.fileno())


def check_no_wrong_block(path, old, new):
    """Reads past the kernel's cache: each block is the old one or the new one, or an error."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, BLOCK)
    try:
        for start in range(0, SIZE, BLOCK):
            with contextlib.suppress(OSError):
                if os.preadv(fd, [page], start) == BLOCK:
                    h.check(page[:] in (old[start:start + BLOCK], new[start:start + BLOCK]),
                            f"other bytes at {start} after the failure")
    finally:
        os.close(fd)


def one_failure(space, volume, device, old):
    """What a file holds after the device failed while `old` was overwritten: that, or what came instead."""
    volume.mount()
    path = volume.path("file")
    path.write_bytes(old)
    h.fsync_directory(volume.mount_point)
    new = space.random.randbytes(SIZE)

    resize(device, LEFT_BYTES)
    h.check(error_of(lambda: write_and_sync(path, new)) in (errno.EIO, errno.ENOSPC), "a failed fsync said nothing")
    h.check(error_of(lambda: write_and_sync(path, new)) != 0, "a second fsync said nothing")
    h.check(error_of(lambda: volume.path("later").mkdir() or h.fsync_directory(volume.mount_point)) != 0,
            "a directory was made durable without a device")
    resize(device, 0)
    h.check(error_of(lambda: write_and_sync(path, new)) != 0, "the volume went on after it had lost writes")
    check_no_wrong_block(path, old, new)
    h.run_command(h.command(), "umount", volume.mount_point)
    volume.server.wait(timeout=h.COMMAND_SECONDS_MAX)
    volume.server = None

    volume.mount()
    found = path.read_bytes()
    h.check(found == old, "what was synced is not there after the failure")
    h.check(not volume.path("later").exists(), "a directory came back that was refused")
    volume.umount()
    volume.fsck()


def write_protected(volume, device):
    """A device that says beforehand that it can't be written is mounted read-only."""
    h.run_command("blockdev", "--setro", device)
    volume.mount()
    h.check(volume.path("file").exists(), "the file is not there")
    h.check(os.statvfs(volume.mount_point).f_flag & os.ST_RDONLY != 0, "not mounted read-only")
    h.check(error_of(volume.path("later").mkdir) == errno.EROFS, "mkdir on a write-protected device")
    volume.umount()
    h.run_command("blockdev", "--setrw", device)


def test(space):
    volume = space.volume(size="256M", name="device")
    with h.loop_device(volume.image) as device:
        volume.image = device
        try:
            for _ in range(3):
                one_failure(space, volume, device, space.random.randbytes(SIZE))
            write_protected(volume, device)
        finally:
            volume.dispose()


h.run(test)
