#!/usr/bin/env python3
"""What was written with O_DIRECT, asynchronously, is what a read through the page cache gives afterwards, also when
others read through the cache while it was written: by a file opened without the flag, by a mapping of one opened with it,
and by one from which fcntl() took it. And writers that got the flag from fcntl()."""
import contextlib
import ctypes
import fcntl
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

    def __init__(self, path, flag_by_fcntl=False):
        self.fd = os.open(path, os.O_WRONLY | (0 if flag_by_fcntl else os.O_DIRECT))
        if flag_by_fcntl:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_DIRECT)
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


@contextlib.contextmanager
def opened(path, flags):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def plain_reader(path):
    with opened(path, os.O_RDONLY) as fd:
        yield lambda: os.pread(fd, BYTES, 0)


@contextlib.contextmanager
def reader_without_flag(path):
    with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        yield lambda: os.pread(fd, BYTES, 0)


@contextlib.contextmanager
def mapping(path, flags=mmap.MAP_SHARED):
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd:
        memory = mmap.mmap(fd, BYTES, flags=flags, prot=mmap.PROT_READ)
    with memory:  # it keeps the file open
        yield lambda: memory[:]


def private_mapping(path):
    return mapping(path, mmap.MAP_PRIVATE)


def check_reader(volume, reader, seconds, flag_by_fcntl=False):
    """Rounds of direct writes while three threads read; none of them may leave old data to the next read."""
    path = volume.path("file")
    path.write_bytes(bytes(BYTES))
    volume.remount()  # so that nothing is known about the file but what happens here
    stop = threading.Event()

    def read_on(read):
        while not stop.is_set():
            read()

    rounds = 0
    with contextlib.ExitStack() as stack:
        reads = [stack.enter_context(reader(path)) for _ in range(3)]
        threads = [threading.Thread(target=read_on, args=(read,)) for read in reads]
        writer = Writer(path, flag_by_fcntl)
        stack.callback(writer.close)
        try:
            for thread in threads:
                thread.start()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                rounds += 1
                fill = rounds % 255 + 1
                writer.write_all(fill)
                seen = reads[0]()
                stale = [at for at in range(0, BYTES, 4096) if seen[at] != fill]
                h.check(not stale, f"round {rounds}: {len(stale)} stale pages, the first at {stale[:1]}")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    return rounds


def check_mapped_stores(volume):
    """A mapping's stores and direct I/O by the same descriptor see each other."""
    path = volume.path("stores")
    path.write_bytes(bytes(BYTES))
    page = mmap.mmap(-1, 4096)
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(fd, BYTES) as memory:
        for i in range(200):
            at = i % (BYTES // 4096) * 4096
            memory[at:at + 4096] = bytes([i % 251 + 1]) * 4096
            os.preadv(fd, [page], at)
            h.check(page[0] == page[4095] == i % 251 + 1, f"a direct read after store {i} gives {page[0]}")
            page[:] = bytes([i % 241 + 7]) * 4096
            os.pwritev(fd, [page], at)
            h.check(memory[at] == memory[at + 4095] == i % 241 + 7, f"after direct write {i} the mapping has {memory[at]}")


def test(space):
    volume = space.volume(size="128M").mount()
    seconds = h.number_from("COFS_COHERENCE_SECONDS", 2)
    for reader in (plain_reader, reader_without_flag, mapping, private_mapping):
        h.note(f"{reader.__name__}: {check_reader(volume, reader, seconds)} rounds")
    h.note(f"writer with the flag by fcntl(): {check_reader(volume, plain_reader, seconds, flag_by_fcntl=True)} rounds")
    check_mapped_stores(volume)
    volume.umount()
    volume.fsck()


h.run(test)
