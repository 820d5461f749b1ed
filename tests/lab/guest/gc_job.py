"""Overwrites on a volume that is four fifths full, with the device copying for garbage collection and with the host.

Arguments: `engines`, those that the command has; `turns`, how often the volume's size is written.
"""
import mmap
import multiprocessing
import os
import random
import signal
import struct
import time

import checks as frame
from checks import h
import devices as d
from volume import REFERENCE, DeviceVolume, device_options, fetch_reference

FILL = 0.8                # of statfs's total
HOT_DATA = 0.1            # so much of the data …
HOT_WRITES = 0.9          # … takes so much of the overwrites
PIECE_BYTES = 64 << 10    # written at once
SYNC_BYTES = 16 << 20     # between two fsyncs
READ_PAUSE_SECONDS = 0.05
HOST_SHARE_MAX = 0.01     # of what is relocated
RELOCATED_SHARE_MIN = 0.25  # of the volume's size: less would show nothing
STAMP = struct.Struct("<QQ")


class Content:
    """What the file must hold: each piece has a generation, from which its bytes follow."""

    def __init__(self, pieces, seed):
        self.reference = REFERENCE.read_bytes()
        self.generations = [0] * pieces
        self.random = random.Random(seed)

    def bytes_of(self, piece):
        """Part of the reference, with a stamp at the head of each block."""
        generation = self.generations[piece]
        start = (piece * 7919 + generation * 104_729) % (len(self.reference) - PIECE_BYTES)
        data = bytearray(self.reference[start:start + PIECE_BYTES])
        for offset in range(0, PIECE_BYTES, d.BLOCK_BYTES):
            STAMP.pack_into(data, offset, piece * PIECE_BYTES + offset, generation)
        return data

    def next_piece(self):
        hot = int(len(self.generations) * HOT_DATA)
        if self.random.random() < HOT_WRITES:
            return self.random.randrange(hot)
        return self.random.randrange(hot, len(self.generations))


def read_latencies(path, pieces, pipe):
    """A process of its own: 4 KiB reads past the page cache, one after the other, until SIGTERM."""
    going = True

    def end(*_):
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, end)
    choice = random.Random(1)
    buffer = mmap.mmap(-1, d.BLOCK_BYTES)
    latencies = []
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    while going:
        offset = choice.randrange(pieces * PIECE_BYTES // d.BLOCK_BYTES) * d.BLOCK_BYTES
        start = time.monotonic()
        os.preadv(fd, [buffer], offset)
        latencies.append(time.monotonic() - start)
        time.sleep(READ_PAUSE_SECONDS)
    os.close(fd)
    pipe.send(sorted(latencies))


def sectors(target, field):
    """Of the kernel's counters of the disks below: 2 reads, 6 writes. Copy commands are not in them."""
    names = [name for disk in target.disks for name in d.counted_names(disk)]
    return sum(int((d.SYS_BLOCK / name / "stat").read_text().split()[field]) for name in names)


def processor_seconds(pid):
    fields = (d.pathlib.Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fill(volume, content):
    with open(volume.path("data"), "wb", buffering=0) as file:
        for piece in range(len(content.generations)):
            file.write(content.bytes_of(piece))
        os.fsync(file.fileno())


def overwrite(volume, content, total_bytes):
    """Returns the seconds it took."""
    start = time.monotonic()
    fd = os.open(volume.path("data"), os.O_WRONLY)
    for count in range(total_bytes // PIECE_BYTES):
        piece = content.next_piece()
        content.generations[piece] += 1
        os.pwrite(fd, content.bytes_of(piece), piece * PIECE_BYTES)
        if count % (SYNC_BYTES // PIECE_BYTES) == 0:
            os.fsync(fd)
    os.fsync(fd)
    os.close(fd)
    return time.monotonic() - start


def wrong_pieces(volume, content):
    wrong = 0
    with open(volume.path("data"), "rb", buffering=0) as file:
        for piece in range(len(content.generations)):
            if file.read(PIECE_BYTES) != content.bytes_of(piece):
                wrong += 1
    return wrong


def measure(checks, volume, content, total_bytes):
    """Overwrites with readers beside it; returns what came of it as a dictionary of figures."""
    target = volume.target
    before = volume.statistics()
    sectors_before = [sectors(target, field) for field in (2, 6)]
    processor_before = processor_seconds(volume.server.pid)
    ours, theirs = multiprocessing.Pipe()
    reader = multiprocessing.Process(target=read_latencies,
                                     args=(volume.path("data"), len(content.generations), theirs))
    reader.start()
    seconds = overwrite(volume, content, total_bytes)
    reader.terminate()
    latencies = ours.recv()
    reader.join()
    after = volume.statistics()
    gc = {name: after["gc"][name] - before["gc"][name]
          for name in ("relocated_bytes", "device_bytes", "host_bytes", "segments_freed", "device_commands")}
    written = after["io"]["write_bytes"] - before["io"]["write_bytes"]
    data = after["io"]["data_bytes"] - before["io"]["data_bytes"]
    figures = {
        "foreground MB/s": total_bytes / seconds / 1e6,
        "p50 of 4 KiB reads, ms": 1e3 * latencies[len(latencies) // 2],
        "p99 of 4 KiB reads, ms": 1e3 * latencies[len(latencies) * 99 // 100],
        "reads": len(latencies),
        "server CPU s": processor_seconds(volume.server.pid) - processor_before,
        "bytes read over the bus, MB": d.SECTOR_BYTES * (sectors(target, 2) - sectors_before[0]) / 1e6,
        "bytes written over the bus, MB": d.SECTOR_BYTES * (sectors(target, 6) - sectors_before[1]) / 1e6,
        "relocated, MB": gc["relocated_bytes"] / 1e6,
        "relocated by the device, MB": gc["device_bytes"] / 1e6,
        "relocated by the host, MB": gc["host_bytes"] / 1e6,
        "read back to verify copies, MB": (after["copy"]["verified_bytes"] - before["copy"]["verified_bytes"]) / 1e6,
        "segments emptied": gc["segments_freed"],
        "copy commands": gc["device_commands"],
        "write amplification": (written + gc["device_bytes"] + gc["host_bytes"]) / data,
        "write amplification, data only": (data + gc["relocated_bytes"]) / data,
    }
    checks.check(len(latencies) > 20, f"{target.name}: {len(latencies)} reads went on meanwhile")
    return figures, gc


def run_on(checks, volume, turns, seed):
    target = volume.target
    volume.make().mount()
    total = os.statvfs(volume.mount_point)
    content = Content(int(FILL * total.f_blocks * total.f_frsize) // PIECE_BYTES, seed)
    size = volume.statistics()["volume"]["size_bytes"]
    start = time.monotonic()
    fill(volume, content)
    h.note(f"{target.name}: {len(content.generations) * PIECE_BYTES >> 20} of {size >> 20} MiB filled in "
           f"{time.monotonic() - start:.1f} s")
    figures, gc = measure(checks, volume, content, int(turns * size))
    checks.record(target.name, **figures)
    checks.check(gc["relocated_bytes"] >= RELOCATED_SHARE_MIN * size,
                 f"{target.name}: {gc['relocated_bytes'] >> 20} MiB were relocated on {size >> 20} MiB")
    volume.remount()
    checks.check(wrong_pieces(volume, content) == 0, f"{target.name}: all data is what was written last")
    volume.umount()
    volume.fsck(data=True)
    checks.check(True, f"{target.name}: fsck is clean, and all data matches its checksums")
    return figures, gc


def print_table(columns):
    names = list(columns)
    h.note(f"{'':34} " + " ".join(f"{name:>12}" for name in names))
    for row in columns[names[0]]:
        h.note(f"{row:34} " + " ".join(f"{columns[name][row]:12.2f}" for name in names))


def job(checks, arguments):
    engines = arguments["engines"]
    fetch_reference()
    devices = d.Devices()
    columns = {}
    for name in ("bydevice", "byhost"):
        target = devices.whole(name)
        if name == "bydevice":
            if "nvme" not in engines:
                continue
            options = device_options(target, engines, "gc=auto")
        else:
            options = "copy_engine=host,gc=auto"
        volume = DeviceVolume(target, options)
        with checks.part(f"{name}: overwrites", volume):
            figures, gc = run_on(checks, volume, arguments["turns"], checks.seed)
            columns[name] = figures
            if name == "bydevice":
                share = gc["host_bytes"] / max(1, gc["relocated_bytes"])
                checks.check(share < HOST_SHARE_MAX,
                             f"{name}: the host moved {share:.4f} of what was relocated")
            else:
                checks.check(gc["device_bytes"] == 0, f"{name}: the device copied nothing")
    if columns:
        print_table(columns)


if __name__ == "__main__":
    frame.run(job)
