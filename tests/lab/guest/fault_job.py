"""Copies while devices fail: wrong bytes never, EIO only where the data cannot be read, fsck clean after.

Arguments: `engines`, those that the command has.
"""
import os
import random
import subprocess
import threading
import time

import checks as frame
from checks import h
import devices as d
from volume import REFERENCE, DeviceVolume, Difference, device_options, fetch_reference, is_prefix, same

FILE_BYTES = 64 << 20
SLOW_FILE_BYTES = 16 << 20  # on the disk that has commands under way all the time
RESETS_MIN = 4
RESETS_MAX = 20                # until commands were aborted
RESET_PAUSE_SECONDS = (0.1, 0.5)
RESET_CONTROLLER = "/sys/class/nvme/nvme0/reset_controller"
COPIES_KEPT = 3


def copy(volume, name):
    """cp of `source`; returns whether it succeeded. Errors: Failure if it fails otherwise than with EIO."""
    done = subprocess.run(["cp", volume.path("source"), volume.path(name)], stderr=subprocess.PIPE, text=True,
                          timeout=h.COMMAND_SECONDS_MAX, check=False)
    h.check(done.returncode == 0 or "Input/output error" in done.stderr, f"cp: {done.stderr}")
    return done.returncode == 0


def reads_and_writes_fail_once(checks, volume, served):
    """Places that fail at the first try: the device's copy fails there, the next try succeeds."""
    name = volume.target.name
    with Difference(volume) as work:
        succeeded = copy(volume, "copy")
    h.note(f"{name}: {work.copy}")
    if served:
        checks.check(succeeded, f"{name}: cp succeeded")
        checks.check(any("nvme" in reason for reason in work.refused), f"{name}: commands failed: {work.refused}")
        checks.check(work.copy["device_bytes"] > 0, f"{name}: the device copied the rest")
    checks.check(is_prefix(volume.path("copy"), whole=succeeded), f"{name}: what was copied is right")
    h.drop_caches()
    checks.check(same(REFERENCE, volume.path("source")), f"{name}: the source is intact")


def reads_fail(checks, volume, _):
    """Places that can never be read: cp ends with EIO, what it had copied is right, all else works."""
    name = volume.target.name
    checks.check(not copy(volume, "copy"), f"{name}: cp of data that cannot be read fails")
    copied = volume.path("copy")
    checks.check(not copied.exists() or is_prefix(copied), f"{name}: what was copied is right")
    checks.check(is_prefix(volume.path("source")), f"{name}: the source is right up to the bad place")
    head = REFERENCE.read_bytes()[:1 << 20]
    volume.path("other").write_bytes(head)
    checks.check(volume.path("other").read_bytes() == head, f"{name}: the volume still works")


def controller_resets(checks, volume, served):
    """The controller is reset again and again while files are copied: its commands are aborted."""
    name = volume.target.name
    ended = threading.Event()
    kept, problems = [], []

    def copy_on():
        while not ended.is_set() and not problems:
            kept.append(f"copy{time.monotonic_ns()}")
            try:
                if not copy(volume, kept[-1]):
                    problems.append("input/output error")
                if len(kept) > COPIES_KEPT:
                    volume.path(kept.pop(0)).unlink()
            except (h.Failure, OSError, subprocess.SubprocessError) as problem:
                problems.append(str(problem))

    copier = threading.Thread(target=copy_on)
    copier.start()
    moments = random.Random(checks.seed)
    resets, aborted = 0, {}
    while resets < RESETS_MIN or (resets < RESETS_MAX and served and not aborted):
        time.sleep(moments.uniform(*RESET_PAUSE_SECONDS))
        d.write(RESET_CONTROLLER, "1")
        resets += 1
        aborted = volume.copy_counters()["refused"]
    ended.set()
    copier.join()
    checks.check(not problems, f"{name}: every cp succeeded {problems}")
    if served:
        checks.check(aborted, f"{name}: {resets} resets aborted commands: {aborted}")
    h.drop_caches()
    for file in kept:
        checks.check(is_prefix(volume.path(file), whole=not problems), f"{name}: {file} is right")
    volume.remount()
    with Difference(volume) as work:
        checks.check(copy(volume, "after"), f"{name}: cp works after the resets")
    checks.check(work.copy["device_bytes"] > 0 or not served, f"{name}: by the device: {work.copy}")
    checks.check(same(REFERENCE, volume.path("after")), f"{name}: and is right")


def copy_withdrawn(checks, volume, served):
    """EXTENDED COPY is refused after it had worked, and then works again."""
    target, data_bytes = volume.target, REFERENCE.stat().st_size
    for enabled, file in ((True, "before"), (False, "withdrawn"), (True, "again")):
        d.set_lio_copy(target, enabled)
        if file == "again":
            volume.remount()
        with Difference(volume) as work:
            checks.check(copy(volume, file), f"{target.name}: {file}: cp succeeded")
        h.note(f"{target.name}: {file}: {work.copy} {work.refused}")
        if enabled and served:
            checks.check(work.copy["device_bytes"] == data_bytes, f"{target.name}: {file}: by the device")
        else:
            checks.check(work.copy["host_bytes"] >= data_bytes and work.refused,
                         f"{target.name}: {file}: by the host: {work.refused}")
        h.drop_caches()
        checks.check(same(REFERENCE, volume.path(file)), f"{target.name}: {file}: the copy equals the source")


def job(checks, arguments):
    engines = arguments["engines"]
    fetch_reference()
    # Without multipath an aborted command is not sent again by another layer.
    devices = d.Devices(multipath="N")
    scenarios = [
        (reads_and_writes_fail_once, devices.whole("nvmeonce"), FILE_BYTES),
        (reads_fail, devices.whole("nvmebad"), FILE_BYTES),
        (copy_withdrawn, devices.lio("xcopy", "liodisk"), FILE_BYTES),
        (controller_resets, devices.whole("nvmereset"), SLOW_FILE_BYTES),
    ]
    for scenario, target, file_bytes in scenarios:
        os.truncate(REFERENCE, file_bytes)
        volume = DeviceVolume(target, device_options(target, engines))
        with checks.part(f"{target.name}: {scenario.__name__}", volume):
            volume.make("--no-discard").mount()  # the disks are empty, and may be slow
            h.run_command("cp", REFERENCE, volume.path("source"))
            volume.remount()  # nothing is in a cache
            scenario(checks, volume, target.engine in engines)
            volume.umount()
            volume.fsck(data=False)
            checks.check(True, f"{target.name}: fsck is clean")


if __name__ == "__main__":
    frame.run(job)
