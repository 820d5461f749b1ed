"""A cofs volume on a device of the guest, and the content of its files."""
import json
import os
import pathlib
import subprocess
import time

import devices as d
import harness as h

REFERENCE = pathlib.Path("/tmp/reference")
PIECE_BYTES = 128 << 10  # of reads
SCATTER_STRIDE = 64  # blocks written together lie so far apart in the file


class DeviceVolume(h.Volume):
    """The mounted tests' Volume, on a Target instead of an image."""

    def __init__(self, target, options=""):
        self.target = target
        self.image = target.path
        self.options = options
        self.server = None
        self.mount_point = pathlib.Path("/tmp") / f"{target.name}.mnt"
        self.log = pathlib.Path("/tmp") / f"{target.name}.log"
        self.mount_point.mkdir(exist_ok=True)

    def make(self, *options):
        h.run_command(h.command(), "mkfs", "--quiet", "--force", *options, self.image)
        return self

    def copy_counters(self):
        return self.statistics()["copy"]

    def show_log(self):
        if self.log.exists():
            h.note(f"--- last lines of the server's log\n{self.log.read_text(errors='replace')[-3000:]}")


class Difference:
    """Of copy counters and disk reads, over a piece of work. Ends when `with` ends."""

    def __init__(self, volume):
        self.volume = volume

    def __enter__(self):
        os.sync()
        self.copy = self.volume.copy_counters()
        self.read_bytes = self.volume.target.bytes_read()
        self.started = time.monotonic()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.started
        self.read_bytes = self.volume.target.bytes_read() - self.read_bytes
        before, after = self.copy, self.volume.copy_counters()
        self.copy = {name: value - before[name] for name, value in after.items() if isinstance(value, int)}
        self.refused = {reason: count - before["refused"].get(reason, 0)
                        for reason, count in after["refused"].items()
                        if count > before["refused"].get(reason, 0)}


def device_capabilities(target):
    """Prints what `cofs devcap` says; returns it as JSON."""
    print(h.run_command(h.command(), "devcap", target.path), end="", flush=True)
    return json.loads(h.run_command(h.command(), "devcap", "--json", target.path))


def device_options(target, engines, *more):
    """Mount options under which the target's engine, if the command has it, must be what copies."""
    forced = [f"copy_engine={target.engine}"] if target.engine in engines else []
    return ",".join(forced + list(more))


def fetch_reference():
    """The random bytes that the host made, in memory; see Lab.make_reference."""
    h.run_command("cp", d.SHARE / "reference", REFERENCE)


def same(one, other):
    """Whether two files have the same bytes. Errors: Failure if one cannot be read."""
    done = subprocess.run(["cmp", str(one), str(other)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=h.COMMAND_SECONDS_MAX, check=False)
    if done.returncode > 1:
        raise h.Failure(done.stdout.strip())
    if done.returncode == 1:
        h.note(done.stdout.strip())
    return done.returncode == 0


def is_prefix(path, offset=0, size=None, whole=False):
    """Whether a file is how the reference's bytes from `offset` (`size` of them) begin, or all of these.

    What cannot be read (EIO) is not wrong, unless it should be whole.
    """
    with open(REFERENCE, "rb", buffering=0) as reference, open(path, "rb", buffering=0) as file:
        left = REFERENCE.stat().st_size - offset if size is None else size
        reference.seek(offset)
        while True:
            try:
                found = file.read(PIECE_BYTES)
            except OSError:
                return not whole
            if not found:
                return left == 0 or not whole
            expected = reference.read(len(found))
            if len(found) > left or found != expected:
                h.note(f"{path}: wrong at or after byte {file.tell() - len(found)}")
                return False
            left -= len(found)


def write_scattered(path, block_count):
    """The first blocks of the reference as a file whose neighbouring blocks lie apart on the device.

    Every stride-th block is written and made durable before those next to them: what is placed together
    is never neighbours in the file.
    """
    with open(REFERENCE, "rb", buffering=0) as content, open(path, "wb", buffering=0) as file:
        for first in range(SCATTER_STRIDE):
            for block in range(first, block_count, SCATTER_STRIDE):
                data = os.pread(content.fileno(), d.BLOCK_BYTES, block * d.BLOCK_BYTES)
                os.pwrite(file.fileno(), data, block * d.BLOCK_BYTES)
            os.fsync(file.fileno())
