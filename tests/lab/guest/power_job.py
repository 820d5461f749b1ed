"""Files are copied on several devices at once until the power goes; the next boot checks what is there.

What was made durable is noted in the share, so that it outlives the guest: a name is noted after its fsync, and
that it goes before it is removed. Sources are pieces of the reference, which a copy's name tells.
Arguments: `engines`, those that the command has; `first` on empty disks; `last` ends after the check.
"""
import json
import os
import threading
import time

import checks as frame
from checks import h
import devices as d
from volume import DeviceVolume, device_options, fetch_reference, is_prefix, write_scattered

SOURCE_BYTES = 6 << 20
SOURCES = 4
SCATTERED_BLOCKS = 512
COPIES_KEPT = 12
CHUNK_BYTES = 256 << 20
WAIT_SECONDS_MAX = 60


class Journal:
    """What is durable on one volume: a line for a name that has become so, and one for it to be removed."""

    def __init__(self, target):
        self.path = d.SHARE / f"durable-{target.name}"

    def note(self, sign, name):
        with open(self.path, "a", encoding="ascii") as file:
            file.write(f"{sign} {name}\n")

    def names(self):
        """Those that must be there whole."""
        found = set()
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            sign, name = line.split()
            (found.add if sign == "+" else found.discard)(name)
        return found


def piece_of(name):
    """Offset and size of the reference's piece that a source `source3` or a copy `copy.3.17` is made of."""
    number = name.removeprefix("source").removeprefix("copy.").split(".")[0]
    if number == "scattered":
        return 0, SCATTERED_BLOCKS * d.BLOCK_BYTES
    return int(number) * SOURCE_BYTES, SOURCE_BYTES


def make_sources(volume, journal):
    for number in range(SOURCES):
        path = volume.path(f"source{number}")
        h.run_command("dd", "if=/tmp/reference", f"of={path}", f"bs={SOURCE_BYTES}", f"skip={number}", "count=1",
                      "conv=fsync", "status=none")
        journal.note("+", path.name)
    write_scattered(volume.path("sourcescattered"), SCATTERED_BLOCKS)
    h.fsync_directory(volume.mount_point)
    journal.note("+", "sourcescattered")


def check_survivors(checks, volume, journal):
    """Every file is right as far as it goes, and whole if it was durable."""
    name = volume.target.name
    present = {entry.name for entry in volume.mount_point.iterdir()}
    durable = journal.names()
    checks.check(durable <= present, f"{name}: all of {len(durable)} durable files are there {durable - present}")
    wrong, partial = [], 0
    for file in sorted(present):
        offset, size = piece_of(file)
        path = volume.path(file)
        partial += path.stat().st_size < size
        if not is_prefix(path, offset, size, whole=file in durable):
            wrong.append(file)
    checks.check(not wrong, f"{name}: {len(present)} files are right, {partial} of them not complete {wrong}")


def copy_file(source, target):
    """What cp does for a file without holes; returns once the copy is complete."""
    with open(source, "rb", buffering=0) as from_file, open(target, "wb", buffering=0) as to_file:
        while os.copy_file_range(from_file.fileno(), to_file.fileno(), CHUNK_BYTES) > 0:
            pass
        return os.dup(to_file.fileno())


class Copier(threading.Thread):
    """Copies on one volume until the power goes: every other copy is made durable, old ones are removed."""

    def __init__(self, volume, journal, serial):
        super().__init__(daemon=True)
        self.volume, self.journal, self.serial = volume, journal, serial
        self.problem = None
        self.copies = 0
        self.kept = []

    def run(self):
        try:
            while True:
                self.copy_one()
        except (OSError, h.Failure) as problem:
            self.problem = problem

    def copy_one(self):
        number = ("0", "1", "scattered", "2", "3")[self.copies % (SOURCES + 1)]
        name = f"copy.{number}.{self.serial}.{self.copies}"
        fd = copy_file(self.volume.path(f"source{number}"), self.volume.path(name))
        try:
            if self.copies % 2 == 1:
                os.fsync(fd)
                self.journal.note("+", name)
        finally:
            os.close(fd)
        self.kept.append(name)
        self.copies += 1
        if len(self.kept) > COPIES_KEPT:
            old = self.kept.pop(0)
            self.journal.note("-", old)
            self.volume.path(old).unlink()


def prepare(checks, volume, journal, first):
    """The volume as it is after the power came back (or a new one), checked and mounted."""
    target = volume.target
    if first:
        volume.make("--no-discard").mount()  # the disks are empty, and may be slow
        make_sources(volume, journal)
        return
    volume.mount()
    checks.check(not volume.statistics()["volume"]["was_clean"], f"{target.name}: mounted after the power cut")
    check_survivors(checks, volume, journal)
    volume.umount()
    volume.fsck(data=True)
    checks.check(True, f"{target.name}: fsck is clean, and all data matches its checksums")
    volume.mount()
    for entry in volume.mount_point.iterdir():
        if entry.name.startswith("copy."):
            journal.note("-", entry.name)
            entry.unlink()


def job(checks, arguments):
    fetch_reference()
    devices = d.Devices(multipath="N")
    targets = [devices.whole("nvme"), devices.lio("xcopy", "liodisk")]
    volumes = [DeviceVolume(target, device_options(target, arguments["engines"])) for target in targets]
    copiers = []
    for volume in volumes:
        with checks.part(volume.target.name, volume, keep_mounted=True):
            journal = Journal(volume.target)
            prepare(checks, volume, journal, arguments["first"])
            copiers.append(Copier(volume, journal, arguments["round"]))
    if arguments["last"] or checks.failed:
        for volume in volumes:
            volume.dispose()
        return
    for copier in copiers:
        copier.start()
    until = time.monotonic() + WAIT_SECONDS_MAX
    while any(copier.copies < SOURCES for copier in copiers) and time.monotonic() < until:
        time.sleep(0.05)
    counters = {copier.volume.target.name: copier.volume.copy_counters() for copier in copiers}
    for copier in copiers:
        if copier.volume.target.engine in arguments["engines"]:
            name = copier.volume.target.name
            checks.check(counters[name]["device_bytes"] > 0, f"{name}: the device copies")
    frame.publish(f"copying-{arguments['round']}", json.dumps(counters))
    time.sleep(WAIT_SECONDS_MAX)
    for copier in copiers:
        checks.check(copier.problem is None, f"{copier.volume.target.name}: {copier.problem}")
    checks.check(False, "the power was not cut")


if __name__ == "__main__":
    frame.run(job)
