#!/usr/bin/env python3
"""The label of a mounted volume: FS_IOC_GETFSLABEL and FS_IOC_SETFSLABEL, by themselves, by `cofs label` and by xfs_io. A new one
survives a kill of the server right after it was set; root alone may set one, and not on a read-only mount."""
import errno
import fcntl
import os
import shutil

import harness as h

LABEL_MAX = 256                                   # of the interface: FSLABEL_MAX
COFS_LABEL_MAX = 63
GET = 2 << 30 | LABEL_MAX << 16 | 0x94 << 8 | 49  # FS_IOC_GETFSLABEL
SET = 1 << 30 | LABEL_MAX << 16 | 0x94 << 8 | 50  # FS_IOC_SETFSLABEL


def label_of(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        got = fcntl.ioctl(fd, GET, bytes([0x55]) * LABEL_MAX)
    finally:
        os.close(fd)
    label = got.split(b"\0")[0]
    h.check(got == label.ljust(LABEL_MAX, b"\0"), f"not padded with zeros: {got}")
    return label.decode()


def set_label_by(fd, label):
    """The errno; 0: it was done."""
    try:
        fcntl.ioctl(fd, SET, label.ljust(LABEL_MAX, b"\0"))
        return 0
    except OSError as problem:
        return problem.errno


def set_label(path, label, user=None):
    """By a descriptor that root opened."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if user is None:
            return set_label_by(fd, label)
        child = os.fork()
        if child == 0:
            status = 255
            try:
                os.setuid(user)
                status = set_label_by(fd, label)
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(fd)


def test(space):
    if os.geteuid() != 0:
        h.skip("setting a label needs root")
    volume = space.volume(size="128M", options="commit=300,allow_other", mkfs=("--label", "first")).mount()
    root = volume.mount_point
    volume.path("file").write_bytes(b"x" * 100_000)
    h.check(label_of(root) == "first", f"mkfs's label: {label_of(root)}")
    h.check(set_label(volume.path("file"), "zweites \u00dc".encode()) == 0, "cannot set a label")
    h.check(label_of(root) == "zweites \u00dc", f"the label set: {label_of(root)}")
    h.check(volume.statistics()["volume"]["label"] == "zweites \u00dc", "cofs stat has another label")
    volume.kill()
    volume.clear_dead_mount()
    volume.mount()
    h.check(label_of(root) == "zweites \u00dc", f"after a kill: {label_of(root)}")

    long = b"l" * COFS_LABEL_MAX
    h.check(set_label(root, long) == 0 and label_of(root) == long.decode(), "the longest label")
    for bad in (long + b"l", b"l" * LABEL_MAX):
        h.check(set_label(root, bad) == errno.EINVAL, "a label that is too long was taken")
    h.check(set_label(root, b"nobody's", user=65534) == errno.EPERM, "nobody set a label")
    h.check(label_of(root) == long.decode(), "a refused label stayed")

    h.run_command(h.command(), "label", root, "third")
    h.check(h.run_command(h.command(), "label", root) == "third\n", "cofs label")
    h.run_command(h.command(), "label", root, long.decode() + "l", expect=1)
    h.run_command(h.command(), "label", root, "l" * LABEL_MAX, expect=1)
    h.run_command(h.command(), "label", space.directory, expect=1)  # not on a cofs
    volume.remount()
    h.check(label_of(root) == "third", "after a remount")
    if shutil.which("xfs_io"):
        h.run_command("xfs_io", "-c", "label -s fourth", root)
        h.check(h.run_command("xfs_io", "-c", "label", root) == 'label = "fourth"\n', "xfs_io")
        h.run_command("xfs_io", "-c", "label -c", root)
    else:
        h.note("xfs_io is not installed: not tried")
        h.run_command(h.command(), "label", root, "")
    h.check(label_of(root) == "", "the empty label")
    volume.umount()
    volume.fsck()

    volume.options = "ro"
    volume.mount()
    h.check(set_label(root, b"ro") == errno.EROFS, "a label was set on a read-only mount")
    h.check(label_of(root) == "", "the label of a read-only mount")
    volume.umount()


h.run(test)
