#!/usr/bin/env python3
"""A write with O_DSYNC, O_SYNC or RWF_DSYNC is durable when it returns: through the cache, direct, and asynchronous. The
server is killed right after it; what was written without them before the kill must be gone, or this would prove nothing."""
import contextlib
import ctypes
import mmap
import os
import struct

import harness as h

BLOCK = 4096
SYS_IO_SETUP, SYS_IO_DESTROY, SYS_IO_GETEVENTS, SYS_IO_SUBMIT = 206, 207, 208, 209  # x86-64
IOCB_CMD_PWRITE = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def aio_write(fd, data, offset, flags):
    """One write by io_submit; waits for its end."""
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    context = ctypes.c_ulong(0)
    h.check(LIBC.syscall(SYS_IO_SETUP, 1, ctypes.byref(context)) == 0, "io_setup")
    block = ctypes.create_string_buffer(struct.pack("<QIIHhIQQqQII", 0, 0, flags, IOCB_CMD_PWRITE, 0, fd, address,
                                                    len(data), offset, 0, 0, 0), 64)
    pointer = ctypes.c_void_p(ctypes.addressof(block))
    submitted = LIBC.syscall(SYS_IO_SUBMIT, context, 1, ctypes.byref(pointer))
    h.check(submitted == 1, f"io_submit: {ctypes.get_errno()}")
    event = ctypes.create_string_buffer(32)
    h.check(LIBC.syscall(SYS_IO_GETEVENTS, context, 1, 1, event, None) == 1, "io_getevents")
    result = struct.unpack_from("<QQqq", event)[2]
    h.check(result == len(data), f"the write ended with {result}")
    LIBC.syscall(SYS_IO_DESTROY, context)


def write(fd, data, offset, flags):
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    h.check(os.pwritev(fd, [memory], offset, flags) == len(data), "a short write")


CASES = [  # name, flags of open(2), how, flags of the write
    ("O_DSYNC", os.O_DSYNC, write, 0),
    ("O_SYNC", os.O_SYNC, write, 0),
    ("RWF_DSYNC", 0, write, os.RWF_DSYNC),
    ("direct, O_DSYNC", os.O_DIRECT | os.O_DSYNC, write, 0),
    ("direct, RWF_DSYNC", os.O_DIRECT, write, os.RWF_DSYNC),
    ("direct, RWF_SYNC", os.O_DIRECT, write, os.RWF_SYNC),
    ("asynchronous, O_DSYNC", os.O_DIRECT | os.O_DSYNC, aio_write, 0),
    ("asynchronous, O_SYNC", os.O_DIRECT | os.O_SYNC, aio_write, 0),
    ("asynchronous, RWF_DSYNC", os.O_DIRECT, aio_write, os.RWF_DSYNC),
    ("nothing", 0, write, 0),
    ("direct, nothing", os.O_DIRECT, write, 0),
    ("asynchronous, nothing", os.O_DIRECT, aio_write, 0),
]


def check_case(volume, name, open_flags, how, write_flags):
    """Overwrites a block in the middle of the file, and appends one."""
    path = volume.path("file")
    path.write_bytes(b"o" * 8 * BLOCK)
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
    durable = "nothing" not in name
    fd = os.open(path, os.O_WRONLY | open_flags)
    try:
        how(fd, b"n" * BLOCK, 2 * BLOCK, write_flags)
        how(fd, b"n" * BLOCK, 8 * BLOCK, write_flags)
        volume.kill()
    finally:
        with contextlib.suppress(OSError):  # with writeback, of what could not be written any more
            os.close(fd)
    volume.clear_dead_mount()
    volume.mount()
    found = path.read_bytes()
    new = b"o" * 2 * BLOCK + b"n" * BLOCK + b"o" * 5 * BLOCK + b"n" * BLOCK
    expected = new if durable else b"o" * 8 * BLOCK
    h.check(found == expected, f"{name}: {len(found) // BLOCK} blocks, {found[::BLOCK]}")


def test(space):
    for options in ("", "writeback"):
        # Nothing is committed by the clock meanwhile.
        volume = space.volume(size="128M", options=f"commit=300,{options}".rstrip(","), name=f"volume{options}").mount()
        for case in CASES:
            check_case(volume, *case)
        volume.umount()
        volume.fsck()


h.run(test)
