#!/usr/bin/env python3
"""What a mount of a block device has for itself: how far the kernel reads ahead on it. The device's own setting stays as it was."""
import os
import pathlib

import harness as h

MOUNT_KIB = 1024
DEVICE_KIB = 256


def read_ahead(name):
    return pathlib.Path(f"/sys/class/bdi/{name}/read_ahead_kb")


def test(space):
    if os.geteuid() != 0:
        h.skip("needs root: mounts a block device")
    volume = space.volume(size="64M")
    with h.loop_device(volume.image) as device:
        volume.image = device
        number = os.stat(device).st_rdev
        name = f"{os.major(number)}:{os.minor(number)}"
        before = read_ahead(name).read_text()
        read_ahead(name).write_text(str(DEVICE_KIB))
        try:
            volume.mount()
            h.check(h.mount_type(volume.mount_point) == "fuseblk.cofs", "not mounted as a block device")
            found = int(read_ahead(f"{name}-fuseblk").read_text())
            h.check(found == MOUNT_KIB, f"the mount is read ahead by {found} KiB")
            found = int(read_ahead(name).read_text())
            h.check(found == DEVICE_KIB, f"the device is read ahead by {found} KiB since the mount")
            volume.umount()
        finally:
            volume.dispose()
            read_ahead(name).write_text(before)


h.run(test)
