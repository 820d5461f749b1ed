"""Clone calls from a program, as Python makes them: through the C library's ioctl.

As a script: `calls.py errors DIRECTORY` makes calls that must fail, and some at the edge of that, on files in
a directory, and prints what each gave as JSON: one filesystem's answers can be compared with another's.
"""
import fcntl
import json
import os
import resource
import struct
import sys

FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
FIDEDUPERANGE = 0xC0189436
FIEMAP = 0xC020660B
FIEMAP_FLAG_SYNC = 1
BLOCK = 4096


def clone(source, target):
    fcntl.ioctl(target, FICLONE, source)


def clone_range(source, source_offset, length, target, target_offset):
    fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, source_offset, length, target_offset))


def dedupe(source, offset, length, targets):
    """targets: [(fd, offset)]; returns [(status, bytes)]."""
    call = bytearray(struct.pack("=QQHHI", offset, length, len(targets), 0, 0))
    for fd, target_offset in targets:
        call += struct.pack("=qQQiI", fd, target_offset, 0, 0, 0)
    fcntl.ioctl(source, FIDEDUPERANGE, call)
    return [struct.unpack_from("=qQQiI", call, 24 + 32 * i)[3:1:-1] for i in range(len(targets))]


def extents(fd, room=200, flags=FIEMAP_FLAG_SYNC, start=0, length=2**64 - 1):
    """[(logical, physical, length, flags)] and how many were mapped."""
    call = bytearray(struct.pack("=QQIIII", start, length, flags, 0, room, 0)) + bytearray(56 * room)
    fcntl.ioctl(fd, FIEMAP, call)
    mapped = struct.unpack_from("=QQIIII", call)[3]
    found = []
    for i in range(min(mapped, room)):
        logical, physical, size, _, _, extent_flags = struct.unpack_from("=QQQQQI", call, 32 + 56 * i)
        found.append((logical, physical, size, extent_flags))
    return found, mapped


def result_of(call, *arguments):
    """What a call returned, or its errno."""
    try:
        return call(*arguments)
    except OSError as problem:
        return f"errno {problem.errno}"


class Files:
    """a: 10 blocks; b: 20 blocks; odd: 2 blocks and 100 bytes; empty."""

    def __init__(self, directory):
        self.directory = directory
        for name, size in (("a", 10 * BLOCK), ("b", 20 * BLOCK), ("odd", 2 * BLOCK + 100), ("empty", 0)):
            with open(self.path(name), "wb") as file:
                file.write(bytes((7 * i // BLOCK + 1) % 251 for i in range(size)))
                file.flush()
                os.fsync(file.fileno())
        self.descriptors = []

    def path(self, name):
        return os.path.join(self.directory, name)

    def open(self, name, flags=os.O_RDWR):
        self.descriptors.append(os.open(self.path(name), flags, 0o644))
        return self.descriptors[-1]

    def size(self, name):
        return os.stat(self.path(name)).st_size


def errors(directory):
    files = Files(directory)
    a, b, odd, empty = (files.open(name) for name in ("a", "b", "odd", "empty"))
    reading = files.open("b", os.O_RDONLY)
    writing = files.open("a", os.O_WRONLY)
    appending = files.open("b", os.O_WRONLY | os.O_APPEND)
    folder = os.open(directory, os.O_RDONLY)
    null = os.open("/dev/null", os.O_RDWR)
    ends = os.pipe()
    answers = {}

    def ask(name, call, *arguments):
        answers[name] = result_of(call, *arguments)

    ask("target read-only", clone, a, reading)
    ask("source write-only", clone, writing, b)
    ask("target append", clone, a, appending)
    ask("source directory", clone, folder, b)
    ask("target directory", clone, a, folder)
    ask("source closed", clone, 999, b)
    ask("source pipe", clone, ends[0], b)
    ask("source device", clone, null, b)
    ask("unaligned source", clone_range, a, 1, BLOCK, b, 0)
    ask("unaligned target", clone_range, a, 0, BLOCK, b, 100)
    ask("unaligned length", clone_range, a, 0, BLOCK + 1, b, 0)
    ask("past the end", clone_range, a, 0, 11 * BLOCK, b, 0)
    ask("from the end", clone_range, a, 10 * BLOCK, BLOCK, b, 0)
    ask("from the end, length 0", clone_range, a, 10 * BLOCK, 0, b, 0)
    ask("from past the end, length 0", clone_range, a, 11 * BLOCK, 0, b, 0)
    ask("negative source", clone_range, a, 2**63, BLOCK, b, 0)
    ask("negative target", clone_range, a, 0, BLOCK, b, 2**63)
    ask("negative length", clone_range, a, 0, 2**63, b, 0)
    ask("wrapping length", clone_range, a, BLOCK, 2**64 - 1, b, 0)
    ask("overlap", clone_range, a, 0, 4 * BLOCK, a, 3 * BLOCK)
    ask("overlap itself", clone_range, a, 0, 4 * BLOCK, a, 0)
    ask("beside itself", clone_range, a, 0, 4 * BLOCK, a, 4 * BLOCK)
    ask("odd end inside the target", clone_range, odd, 0, 0, b, 0)
    ask("odd end past the target's", clone_range, odd, 0, 0, b, 20 * BLOCK)
    ask("empty", clone, empty, b)
    answers["size of b"] = files.size("b")

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 * BLOCK, limit[1]))
    ask("at the file size limit", clone_range, a, 0, BLOCK, b, 40 * BLOCK)
    ask("across the file size limit", clone_range, a, 0, 4 * BLOCK, b, 38 * BLOCK)
    ask("up to the file size limit", clone_range, a, 0, 2 * BLOCK, b, 38 * BLOCK)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    answers["size of b after limits"] = files.size("b")

    same = files.open("same", os.O_RDWR | os.O_CREAT)
    os.write(same, open(files.path("odd"), "rb").read() + bytes(3 * BLOCK))
    twin = files.open("twin", os.O_RDWR | os.O_CREAT)
    os.write(twin, open(files.path("odd"), "rb").read())
    os.fsync(same)
    os.fsync(twin)
    whole = 2 * BLOCK + 100
    ask("dedupe to both ends", dedupe, odd, 0, whole, [(twin, 0)])
    ask("dedupe inside the target", dedupe, odd, 0, whole, [(same, 0)])
    ask("dedupe only a partial block", dedupe, odd, 2 * BLOCK, 100, [(same, 2 * BLOCK)])
    ask("dedupe differs", dedupe, odd, 0, BLOCK, [(same, 3 * BLOCK)])
    ask("dedupe past the source", dedupe, odd, 0, 3 * BLOCK, [(same, 0)])
    ask("dedupe past the target", dedupe, a, 0, 10 * BLOCK, [(same, 0)])
    ask("dedupe unaligned", dedupe, odd, 1, BLOCK, [(same, 1)])
    ask("dedupe nothing", dedupe, odd, 0, 0, [(same, 0)])
    ask("dedupe without targets", dedupe, odd, 0, BLOCK, [])
    ask("dedupe overlap", dedupe, a, 0, 2 * BLOCK, [(a, BLOCK)])
    ask("dedupe several", dedupe, odd, 0, BLOCK, [(twin, 0), (999, 0), (folder, 0), (null, 0), (same, 3 * BLOCK)])
    ask("dedupe source write-only", dedupe, writing, 0, BLOCK, [(same, 0)])
    ask("dedupe source directory", dedupe, folder, 0, BLOCK, [(same, 0)])
    ask("dedupe target read-only", dedupe, odd, 0, BLOCK, [(files.open("twin", os.O_RDONLY), 0)])
    ask("dedupe too many", dedupe, odd, 0, BLOCK, [(twin, 0)] * 128)

    ask("fiemap unknown flag", extents, a, 10, 0x80)
    ask("fiemap nothing", extents, a, 10, 0, 0, 0)
    ask("fiemap far away", extents, a, 10, 0, 2**64 - 1)
    ask("fiemap of empty", extents, empty)
    ask("fiemap device", extents, null)
    ask("another ioctl", fcntl.ioctl, a, 0x5413, bytearray(8))
    print(json.dumps(answers, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "errors":
        errors(sys.argv[2])
    else:
        sys.exit(2)
