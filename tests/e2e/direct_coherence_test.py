#!/usr/bin/env python3
"""What was written with O_DIRECT, asynchronously, is what a read through the page cache gives afterwards, also when
others read through the cache while it was written."""
import ctypes
import mmap
import os
import struct
import threading
import time

import harness as h

BYTES = 640 << 10
PIECE = 64 << 10
SYS_IO_SETUP, SYS_IO_DESTROY, SYS_IO_GETEVENTS, SYS_IO_SUBMIT = 206, 207, 208, 209  # x86-64
IOCB_CMD_PWRITE = 1
LIBC = ctypes.CDLL(None, use_errno=True)


class Writer:
    """Asynchronous direct writes, by io_submit."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
        self.memory = mmap.mmap(-1, BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.context = ctypes.c_ulong(0)
        if LIBC.syscall(SYS_IO_SETUP, 64, ctypes.byref(self.context)) != 0:
            raise OSError(ctypes.get_errno(), "io_setup")

    def write_all(self, fill):
        """The whole file with one byte, in pieces that are under way together."""
        self.memory[:] = bytes([fill]) * BYTES
        blocks = [ctypes.create_string_buffer(struct.pack(
            "<QIIHhIQQqQII", 0, 0, 0, IOCB_CMD_PWRITE, 0, self.fd, self.address + at, PIECE, at, 0, 0, 0), 64)
            for at in range(0, BYTES, PIECE)]
        pointers = (ctypes.c_void_p * len(blocks))(*[ctypes.addressof(block) for block in blocks])
        done = 0
        while done < len(blocks):
            submitted = LIBC.syscall(SYS_IO_SUBMIT, self.context, len(blocks) - done,
                                     ctypes.byref(pointers, done * ctypes.sizeof(ctypes.c_void_p)))
            h.check(submitted > 0, f"io_submit: {ctypes.get_errno()}")
            done += submitted
        events = ctypes.create_string_buffer(32 * len(blocks))
        got = LIBC.syscall(SYS_IO_GETEVENTS, self.context, len(blocks), len(blocks), events, None)
        h.check(got == len(blocks), f"io_getevents: {got}")
        for i in range(got):
            result = struct.unpack_from("<QQqq", events, 32 * i)[2]
            h.check(result == PIECE, f"a write ended with {result}")

    def close(self):
        LIBC.syscall(SYS_IO_DESTROY, self.context)
        os.close(self.fd)


def test(space):
    volume = space.volume(size="128M").mount()
    path = volume.path("file")
    path.write_bytes(bytes(BYTES))
    stop = threading.Event()

    def read_on():
        with open(path, "rb", buffering=0) as file:
            while not stop.is_set():
                os.pread(file.fileno(), BYTES, 0)

    readers = [threading.Thread(target=read_on) for _ in range(3)]
    writer = Writer(path)
    rounds = 0
    try:
        for reader in readers:
            reader.start()
        end = time.monotonic() + h.number_from("COFS_COHERENCE_SECONDS", 5)
        with open(path, "rb", buffering=0) as file:
            while time.monotonic() < end:
                rounds += 1
                fill = rounds % 255 + 1
                writer.write_all(fill)
                seen = os.pread(file.fileno(), BYTES, 0)
                stale = [at for at in range(0, BYTES, 4096) if seen[at] != fill]
                h.check(not stale, f"round {rounds}: {len(stale)} stale pages, the first at {stale[:1]}")
    finally:
        stop.set()
        for reader in readers:
            reader.join()
        writer.close()
    h.note(f"{rounds} rounds")
    volume.umount()
    volume.fsck()


h.run(test)
