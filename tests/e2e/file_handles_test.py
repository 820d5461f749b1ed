#!/usr/bin/env python3
"""File handles (name_to_handle_at, as NFS servers and backup programs use them) live as long as their files: also
when the kernel has forgotten the inode, and across a remount."""
import ctypes
import errno
import os

import harness as h

AT_FDCWD = -100
LIBC = ctypes.CDLL(None, use_errno=True)


class FileHandle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128)]


def handle_of(path):
    handle = FileHandle(bytes=128)
    mount_id = ctypes.c_int()
    if LIBC.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0) != 0:
        raise OSError(ctypes.get_errno(), f"name_to_handle_at {path}")
    return handle


def read_by_handle(volume, handle):
    """The contents, or the error's number."""
    mount = os.open(volume.mount_point, os.O_RDONLY)
    try:
        fd = LIBC.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY)
        if fd < 0:
            return ctypes.get_errno()
        with os.fdopen(fd, "rb") as file:
            return file.read()
    finally:
        os.close(mount)


def test(space):
    if os.geteuid() != 0:
        h.skip("open_by_handle_at needs root")
    volume = space.volume(size="128M").mount()
    deep = volume.path("a", "b")
    deep.mkdir(parents=True)
    kept, renamed, deleted = (deep / name for name in ("kept", "renamed", "deleted"))
    for path in (kept, renamed, deleted):
        path.write_text(path.name)
    handles = {path.name: handle_of(path) for path in (kept, renamed, deleted)}
    renamed.rename(volume.path("elsewhere"))
    deleted.unlink()
    for step in ("cached", "dropped", "remounted"):
        if step == "dropped":
            h.drop_caches()
        elif step == "remounted":
            volume.remount()
        for name, wanted in (("kept", b"kept"), ("renamed", b"renamed"), ("deleted", errno.ESTALE)):
            found = read_by_handle(volume, handles[name])
            h.check(found == wanted, f"{step}: the handle of {name} gives {found}, not {wanted}")
    volume.umount()
    volume.fsck()


h.run(test)
