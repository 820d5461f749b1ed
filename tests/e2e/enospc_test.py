#!/usr/bin/env python3
"""A full volume: the write itself says ENOSPC, what was written reads back, rm works at once, the space
can be written again; many times over.

COFS_FULL_ROUNDS: how often (default 20).
"""
import errno
import hashlib
import os

import harness as h

IMAGE_MB = 256
REFILL_MIN = 0.85  # of what the first fill got in


def block(space, serial):
    return hashlib.sha256(f"{space.seed}/{serial}".encode()).digest() * 4096  # 128 KiB


def write_until_full(space, directory, file_bytes, first):
    """Fills the volume with files; returns [(path, bytes accepted, serial)]. Only write() may fail."""
    files, serial = [], first
    while True:
        path = directory / f"f{serial}"
        try:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except OSError as problem:
            h.check(problem.errno == errno.ENOSPC, f"open: {problem}")
            return files
        accepted, full = 0, False
        data = block(space, serial)
        while accepted < file_bytes and not full:
            chunk = data[:min(len(data), file_bytes - accepted)]
            try:
                accepted += os.write(fd, chunk)
            except OSError as problem:
                h.check(problem.errno == errno.ENOSPC, f"write: {problem}")
                full = True
        os.fsync(fd)  # whatever was accepted has its place
        os.close(fd)
        files.append((path, accepted, serial))
        serial += 1
        if full:
            return files


def check_contents(space, files):
    for path, accepted, serial in files:
        data = block(space, serial)
        whole = (data * (accepted // len(data) + 1))[:accepted]
        with open(path, "rb") as file:
            found = file.read()
        h.check(found == whole, f"{path.name}: {len(found)} bytes read back, {accepted} written, or others")


def free_bytes(volume):
    info = os.statvfs(volume.mount_point)
    return info.f_bavail * info.f_frsize


def test(space):
    rounds = h.number_from("COFS_FULL_ROUNDS", 20)
    volume = space.volume(size=f"{IMAGE_MB}M").mount()
    first_total, smallest = 0, 0
    for i in range(rounds):
        promised = free_bytes(volume)
        file_bytes = space.random.choice([1 << 20, 3 << 20, 300_000, 20 << 20])
        directory = volume.path(f"round{i}")
        directory.mkdir()
        files = write_until_full(space, directory, file_bytes, i * 1_000_000)
        total = sum(accepted for _, accepted, _ in files)
        if i == 0:
            first_total = smallest = total
            h.check(total > IMAGE_MB << 19, f"only {total >> 20} MiB fit on a volume of {IMAGE_MB} MiB")
        smallest = min(smallest, total)
        h.check(total >= REFILL_MIN * first_total,
                f"round {i}: {total >> 20} MiB fit, {first_total >> 20} in the first round")
        # Small files take more room for names and inodes than statfs can know of.
        h.check(file_bytes < 1 << 20 or total >= 0.9 * promised,
                f"round {i}: statfs promised {promised >> 20} MiB, {total >> 20} fit")
        if i % 4 == 3:
            volume.remount()
        h.drop_caches()
        check_contents(space, files)
        h.run_command("rm", "-r", directory)
    volume.umount()
    volume.fsck()
    h.note(f"full volume: {rounds} times, {first_total >> 20} MiB at first, {smallest >> 20} MiB at least")


h.run(test)
