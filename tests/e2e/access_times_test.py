#!/usr/bin/env python3
"""Access times as the mount's options promise: strictatime also where the kernel's cache has the data."""
import os
import time

import harness as h

CONTENT = b"x" * 4096  # a whole page, which the kernel keeps after the write


def access_time_after_reading(path):
    with open(path, "rb", buffering=0) as file:
        h.check(file.read() == CONTENT, "wrong contents")
    return os.stat(path).st_atime_ns


def changes_of(volume, options, reads=3):
    """For each of some reads of a file that was read before: has the access time changed?"""
    volume.options = options
    volume.mount()
    path = volume.path("file")
    path.write_bytes(CONTENT)
    os.utime(path, (1, 2))  # relatime changes it once
    seen = [os.stat(path).st_atime_ns]
    for _ in range(reads):
        time.sleep(0.02)
        seen.append(access_time_after_reading(path))
    volume.umount()
    return [later != before for before, later in zip(seen, seen[1:])]


def test(space):
    volume = space.volume(size="128M")
    for options, wanted in (("strictatime", [True, True, True]), ("noatime", [False, False, False])):
        changed = changes_of(volume, options)
        h.check(changed == wanted, f"{options}: access times changed: {changed}, wanted {wanted}")
    volume.fsck()


h.run(test)
