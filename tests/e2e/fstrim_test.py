#!/usr/bin/env python3
"""Discards reach the image: deleting punches holes by itself, fstrim(8) where the mount does not, and
fstrim honours its range, who asks, and read-only mounts."""
import errno
import fcntl
import os
import re
import struct
import time

import harness as h

MIB = 1 << 20
FILES = 20
FILE_MIB = 4
FITRIM = 0xC0185879


def allocated(volume):
    return os.stat(volume.image).st_blocks * 512


def write_and_delete(space, volume):
    """Fills files with data and deletes most of them; returns the bytes deleted."""
    kept = volume.path("kept")
    kept.write_bytes(space.random.randbytes(FILE_MIB * MIB))
    for i in range(FILES):
        volume.path(f"f{i}").write_bytes(space.random.randbytes(FILE_MIB * MIB))
    h.run_command(h.command(), "sync", volume.mount_point)
    for i in range(FILES):
        os.unlink(volume.path(f"f{i}"))
    for _ in range(3):
        h.run_command(h.command(), "sync", volume.mount_point)
    return FILES * FILE_MIB * MIB


def fstrim(volume, *arguments):
    text = h.run_command("fstrim", "-v", *arguments, volume.mount_point)
    found = re.search(r"\((\d+) bytes\)", text)
    h.check(found, f"fstrim said: {text}")
    return int(found.group(1))


def trim_as_nobody(volume):
    """The errno of FITRIM by an ordinary user on a directory that root opened; 0: it worked."""
    fd = os.open(volume.mount_point, os.O_RDONLY | os.O_DIRECTORY)
    child = os.fork()
    if child == 0:
        status = 255
        try:
            os.setuid(65534)
            fcntl.ioctl(fd, FITRIM, struct.pack("QQQ", 0, 2**64 - 1, 0))
            status = 0
        except OSError as problem:
            status = problem.errno
        finally:
            os._exit(status)
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def shrinks_by(volume, before, wanted):
    deadline = time.monotonic() + 30
    while before - allocated(volume) < wanted:
        h.check(time.monotonic() < deadline,
                f"the image shrank by {(before - allocated(volume)) >> 20} MiB, not by {wanted >> 20}")
        time.sleep(0.2)
        volume.path("tick").write_text(str(time.time()))  # without changes a sync frees nothing
        h.run_command(h.command(), "sync", volume.mount_point)


def test(space):
    h.require_programs("fstrim")
    if os.geteuid() != 0:
        h.skip("fstrim needs root")

    volume = space.volume(size="256M", name="discard").mount()
    full = FILES * FILE_MIB * MIB
    write_and_delete(space, volume)
    shrinks_by(volume, full, full * 8 // 10)
    h.check(volume.statistics()["io"]["discarded_bytes"] >= full * 8 // 10, "discards are not counted")
    volume.umount()
    volume.fsck()

    volume = space.volume(size="256M", name="trim", options="nodiscard").mount()
    deleted = write_and_delete(space, volume)
    volume.remount()  # the clean unmount's checkpoint frees all that was held
    before = allocated(volume)
    h.check(before >= deleted, f"only {before >> 20} MiB allocated before the trim")
    part = fstrim(volume, "-o", str(32 * MIB), "-l", str(16 * MIB))
    h.check(0 < part <= 16 * MIB, f"{part} bytes trimmed of a range of 16 MiB")
    for too_short in (0, 4095):
        refused = h.run_command("fstrim", "-l", str(too_short), volume.mount_point, expect=None)
        h.check("Invalid argument" in refused, f"fstrim of {too_short} bytes said: {refused}")
    h.check(fstrim(volume, "-m", str(1024 * MIB)) == 0, "trimmed less than the least length")
    trimmed = fstrim(volume)
    h.check(deleted * 8 // 10 <= trimmed <= 256 * MIB, f"{trimmed >> 20} MiB trimmed")
    shrinks_by(volume, before, deleted * 8 // 10)
    counted = volume.statistics()["io"]["trimmed_bytes"]
    h.check(counted == part + trimmed, f"{counted} bytes counted, {part + trimmed} reported")
    h.note(f"trimmed {trimmed >> 20} MiB, the image went from {before >> 20} to "
           f"{allocated(volume) >> 20} MiB")

    h.check(trim_as_nobody(volume) == errno.EPERM, "an ordinary user may trim")
    h.check(len(volume.path("kept").read_bytes()) == FILE_MIB * MIB, "a file was lost")
    volume.umount()
    volume.fsck()
    volume.options = "ro"
    volume.mount()
    refused = h.run_command("fstrim", volume.mount_point, expect=None)
    h.check("Read-only" in refused, f"fstrim of a read-only mount said: {refused}")
    volume.umount()


h.run(test)
