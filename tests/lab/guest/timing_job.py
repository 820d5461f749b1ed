"""Late commands, a killed server, and rates.

Arguments: `engines`, those that the command has.
"""
import fcntl
import json
import os
import subprocess
import time

import checks as frame
from checks import h
import devices as d
from volume import REFERENCE, DeviceVolume, Difference, device_options, fetch_reference, is_prefix

SLOW_FILE_BYTES = 16 << 20
LATE_OPTIONS = ("copy_timeout=3", "copy_verify=0", "copy_measure=never")
KILL_AFTER_SECONDS = 1.5
# Of rates taken within seconds of each other. Where all cores are busy with other work the emulation is slow by its
# own, so that the machine's speed changes between the two: the aim of 0.95 is for a quiet machine, and who is below
# this has further rounds.
RATE_RATIO_MIN = 0.7
ROUNDS_MAX = 3
SCRATCH = "0:1G"
RUNS = 5


def copy_whole(source, target):
    """Seconds that copy_file_range takes for all of the file."""
    with open(source, "rb", buffering=0) as from_file, open(target, "wb", buffering=0) as to_file:
        start = time.monotonic()
        while os.copy_file_range(from_file.fileno(), to_file.fileno(), 1 << 30) > 0:
            pass
        return time.monotonic() - start


def raw_rates(target):
    """Bytes per second of the copy commands alone, by range length. Overwrites what is in SCRATCH."""
    measured = json.loads(h.run_command(h.command(), "devcap", "--json", "--force", "--measure", SCRATCH,
                                        target.path))
    return measured["rates_bytes_per_second"][target.engine]


def best_copy_rate(checks, volume):
    """Bytes per second of the best of several copies of a large file, in a volume that is made for it.

    By the system call, not by cp: to start a program takes a tenth of a second here.
    """
    name = volume.target.name
    volume.make("--no-discard").mount()
    h.run_command("cp", REFERENCE, volume.path("source"))
    os.sync()
    best = 0.0
    size = REFERENCE.stat().st_size
    for _ in range(RUNS):
        with Difference(volume) as work:
            seconds = copy_whole(volume.path("source"), volume.path("copy"))
        best = max(best, size / seconds)
        checks.check(work.copy["device_bytes"] == size,
                     f"{name}: all by the device, in {work.copy['device_commands']} commands, {seconds:.3f} s")
        volume.path("copy").unlink()
    volume.umount()
    return best


def copy_rate(checks, volume):
    """The rate of copies of a large file, against the best rate of the commands themselves."""
    target = volume.target
    for _ in range(ROUNDS_MAX):
        rates = raw_rates(target)
        raw = max(rates.values())
        best = best_copy_rate(checks, volume)
        h.note(f"{target.name}: raw rates by range length {rates}; copies at {best / 1e6:.0f} MB/s, the commands "
               f"alone at {raw / 1e6:.0f} MB/s: {best / raw:.2f}")
        if best >= RATE_RATIO_MIN * raw:
            break
    checks.record(target.name, raw_bytes_per_second=rates, filesystem_bytes_per_second=best)
    checks.check(best >= RATE_RATIO_MIN * raw, f"{target.name}: copies at {best / raw:.2f} of the commands' rate")
    volume.fsck(data=False)


def late_answers(checks, volume):
    """Commands that are answered after their time: the copy is completed elsewhere, what lands late harms nothing."""
    name = volume.target.name
    with Difference(volume) as work:
        h.run_command("cp", volume.path("source"), volume.path("copy"))
    h.note(f"{name}: {work.seconds:.1f} s: {work.copy} {work.refused}")
    checks.check(any("did not answer in time" in reason for reason in work.refused),
                 f"{name}: commands were given up: {work.refused}")
    h.drop_caches()
    checks.check(is_prefix(volume.path("copy"), size=SLOW_FILE_BYTES, whole=True), f"{name}: the copy is right")
    volume.umount()  # waits for the answers
    log = volume.log.read_text(errors="replace")
    checks.check("a copy that had timed out was answered: done" in log, f"{name}: they were answered later")
    volume.fsck(data=True)
    checks.check(True, f"{name}: fsck is clean, and all data matches its checksums")


def is_locked(path):
    with open(path, "rb") as device:
        try:
            fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def killed_server(checks, volume):
    """kill -9 with commands under way: the lock stays until they are answered, so the next server waits."""
    name = volume.target.name
    volume.options = device_options(volume.target, ["nvme"], "copy_measure=never")
    volume.mount()
    copier = subprocess.Popen(["cp", volume.path("source"), volume.path("killed")], stderr=subprocess.DEVNULL)
    time.sleep(KILL_AFTER_SECONDS)
    volume.kill()
    checks.check(is_locked(volume.target.path), f"{name}: the device is still locked when the server is gone")
    start = time.monotonic()
    copier.wait()
    volume.clear_dead_mount()
    volume.mount()
    checks.check(True, f"{name}: the next mount came {time.monotonic() - start:.1f} s later")
    checks.check(is_prefix(volume.path("source"), size=SLOW_FILE_BYTES, whole=True), f"{name}: the source is intact")
    killed = volume.path("killed")
    checks.check(not killed.exists() or is_prefix(killed, size=SLOW_FILE_BYTES), f"{name}: the copy is right or not there")
    volume.umount()
    volume.fsck(data=True)
    checks.check(True, f"{name}: fsck is clean, and all data matches its checksums")


def job(checks, arguments):
    engines = arguments["engines"]
    if "nvme" not in engines:
        checks.check(True, "nothing to time without the engine nvme")
        return
    fetch_reference()
    # Without multipath an aborted command is not sent again by another layer.
    devices = d.Devices(multipath="N")
    fast = devices.whole("nvmefast")
    volume = DeviceVolume(fast, device_options(fast, engines, "copy_verify=0", "copy_measure=never"))
    with checks.part(f"{fast.name}: rates", volume):
        copy_rate(checks, volume)
    slow = devices.whole("nvmeslow")
    volume = DeviceVolume(slow, device_options(slow, engines, *LATE_OPTIONS))
    with checks.part(f"{slow.name}: late answers and a killed server", volume):
        volume.make("--no-discard").mount()
        h.run_command("dd", f"if={REFERENCE}", f"of={volume.path('source')}", "bs=1M",
                      f"count={SLOW_FILE_BYTES >> 20}", "conv=fsync", "status=none")
        late_answers(checks, volume)
        killed_server(checks, volume)


if __name__ == "__main__":
    frame.run(job)
