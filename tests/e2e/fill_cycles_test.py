#!/usr/bin/env python3
"""A volume's whole life, many times over: filled to the last block, half of it deleted at random, random
overwrites in what is left, filled again. ENOSPC comes only when statfs shows next to nothing, no write
takes long, everything reads back, and the classes of space add up to the volume.

COFS_FILL_CYCLES: how often (default 3; 20 is the full form), COFS_FILL_MB: the image (default 192; with
COFS_FILL_CYCLES 1024), COFS_FILL_SECONDS: the longest that one write may take (default 20).
"""
import errno
import hashlib
import os
import time

import harness as h

UNIT = 4096
FILE_UNITS = (4, 2048)       # 16 KiB … 8 MiB
WRITE_UNITS = 32             # in one write(2)
OVERWRITE_SHARE = 0.25       # of the volume, in each cycle
SHOWN_MAX_SHARE = 0.01       # of the volume: statfs may show so much when a write hears ENOSPC, …
SHOWN_MAX_BYTES = 2 << 20    # … and so much on small ones


class Cycles:
    def __init__(self, space, volume, megabytes):
        self.space = space
        self.volume = volume
        self.size = megabytes << 20
        self.files = {}      # path: [serial of each unit]
        self.serial = 0
        self.longest = 0.0
        self.shown_most = 0  # by statfs at an ENOSPC
        self.written = 0

    def unit(self, serial):
        return hashlib.sha256(f"{self.space.seed}/{serial}".encode()).digest() * (UNIT // 32)

    def available(self):
        info = os.statvfs(self.volume.mount_point)
        return info.f_bavail * info.f_frsize

    def no_space(self, what):
        """A request heard ENOSPC: statfs must have known."""
        shown = self.available()
        self.shown_most = max(self.shown_most, shown)
        h.check(shown <= max(self.size * SHOWN_MAX_SHARE, SHOWN_MAX_BYTES),
                f"{what}: ENOSPC while statfs shows {shown >> 10} KiB")

    def write(self, fd, first, count, serials):
        """Writes units and remembers them; False at ENOSPC."""
        mine = list(range(self.serial + 1, self.serial + 1 + count))
        self.serial += count
        data = b"".join(self.unit(serial) for serial in mine)
        start = time.monotonic()
        try:
            done = os.pwrite(fd, data, first * UNIT)
        except OSError as problem:
            h.check(problem.errno == errno.ENOSPC, f"write: {problem}")
            done = 0
        self.longest = max(self.longest, h.seconds_since(start))
        h.check(done % UNIT == 0, f"a write of {len(data)} bytes took {done}")
        whole = done // UNIT
        serials[first:first + whole] = mine[:whole]
        self.written += done
        if whole == count:
            return True
        self.no_space("write")
        return False

    def fill(self, directory):
        number = 0
        while True:
            path = directory / f"f{number}"
            number += 1
            units = self.space.random.randint(*FILE_UNITS)
            try:
                fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except OSError as problem:
                h.check(problem.errno == errno.ENOSPC, f"open: {problem}")
                self.no_space("open")
                return
            serials = self.files[path] = []
            full = False
            while len(serials) < units and not full:
                count = min(WRITE_UNITS, units - len(serials))
                full = not self.write(fd, len(serials), count, serials)
            os.close(fd)
            if full:
                return

    def overwrite(self):
        paths = [path for path, serials in self.files.items() if serials]
        end = self.written + int(self.size * OVERWRITE_SHARE)
        while self.written < end:
            path = self.space.random.choice(paths)
            serials = self.files[path]
            fd = os.open(path, os.O_WRONLY)
            for _ in range(16):
                count = min(self.space.random.choice([1, 1, 2, 8]), len(serials))
                self.write(fd, self.space.random.randrange(len(serials) - count + 1), count, serials)
            if self.space.random.random() < 0.1:
                os.fsync(fd)
            os.close(fd)

    def delete_half(self):
        for path in list(self.files):
            if self.space.random.random() < 0.5:
                os.unlink(path)
                del self.files[path]

    def check_contents(self):
        h.drop_caches()
        for path, serials in self.files.items():
            with open(path, "rb") as file:
                found = file.read()
            wanted = b"".join(self.unit(serial) for serial in serials)
            h.check(found == wanted, f"{path.name}: {len(found)} bytes, {len(wanted)} written, or others")


def check_sums(figures):
    """Every byte of the device has one class, every byte of the room among them one purpose."""
    classes, room = sum(figures["classes"].values()), sum(figures["room"].values())
    h.check(classes == figures["device_bytes"], f"the classes add up to {classes}: {figures}")
    h.check(room == figures["room_bytes"], f"the room adds up to {room}: {figures}")


def test(space):
    full_form = "COFS_FILL_CYCLES" in os.environ
    rounds = h.number_from("COFS_FILL_CYCLES", 3)
    megabytes = h.number_from("COFS_FILL_MB", 1024 if full_form else 192)
    seconds_max = h.number_from("COFS_FILL_SECONDS", 20)
    volume = space.volume(size=f"{megabytes}M").mount()
    cycles = Cycles(space, volume, megabytes)
    for i in range(rounds):
        directory = volume.path(f"cycle{i}")
        directory.mkdir()
        promised = cycles.available()
        before = cycles.written
        cycles.longest = 0.0
        start = time.monotonic()
        cycles.fill(directory)
        filled = cycles.written - before
        fill_seconds = h.seconds_since(start)
        h.check(filled >= 0.9 * promised,
                f"cycle {i}: statfs promised {promised >> 20} MiB, {filled >> 20} fit")
        cycles.delete_half()
        cycles.overwrite()
        os.sync()
        cycles.check_contents()
        figures = volume.statistics()
        check_sums(figures["space"])
        h.note(f"cycle {i}: {filled >> 20} MiB filled in {fill_seconds:.1f} s of {promised >> 20} promised, "
               f"longest write {cycles.longest:.2f} s, at most {cycles.shown_most >> 10} KiB shown at ENOSPC, "
               f"moved {figures['gc']['relocated_bytes'] >> 20} MiB, "
               f"write amplification {figures['write_amplification']}")
        h.check(cycles.longest <= seconds_max, f"cycle {i}: a write took {cycles.longest:.1f} s")
        if i % 4 == 1:
            volume.remount()
    volume.umount()
    volume.fsck()  # reads all data, and counts all segments, blocks and references anew
    volume.mount()
    cycles.check_contents()
    volume.umount()


h.run(test)
