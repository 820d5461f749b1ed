"""A large file and a scattered one, copied by cp on every kind of device: by which path, and right.

Arguments: `engines`, those that the command has.
"""
import os

import checks as frame
from checks import h
import devices as d
from volume import (REFERENCE, DeviceVolume, Difference, device_capabilities, device_options, fetch_reference,
                    same, write_scattered)

FILE_BLOCKS = 65_536          # 256 MiB, where an engine serves
HOST_FILE_BLOCKS = 16_384     # 64 MiB elsewhere
TAIL_BYTES = 777              # after the last whole block; whose it is is left open
CHOICE_BYTES = 8 << 20        # copied the way that cofs chooses by its own measurements
READ_SHARE_MAX = 0.01         # of the data, read from the disks while the device copies
SCATTERED_BLOCKS = {"nvme4k": 16_384, "nvme512": 4096, "nvmetiny": 4096, "part": 4096, "xcopy": 2048}
COMMANDS_TOLERANCE = 0.10
# What copy_verify reads back would hide whether anything else is read.
MEASURED_OPTIONS = ("copy_verify=0",)


def make_targets(devices):
    return [
        devices.whole("nvme4k"),
        devices.whole("nvme512"),
        devices.whole("nvmetiny"),
        devices.whole("nvmezero"),
        devices.partition("part", "nvmepart", start_lba=2047),
        devices.linear("linear", "nvmefront", "nvmeback"),
        devices.lio("xcopy", "liodisk"),
        devices.whole("plain"),
    ]


def check_device_path(checks, target, work, data_bytes):
    """The counters and the kernel's agree that the device copied the data."""
    name, by_device, by_host = target.name, work.copy["device_bytes"], work.copy["host_bytes"]
    if target.split:
        checks.check(0 < by_device and data_bytes <= by_device + by_host,
                     f"{name}: the device copied {by_device} bytes, the host {by_host}")
        checks.check(by_device >= data_bytes or work.refused, f"{name}: copy.refused says why: {work.refused}")
    else:
        checks.check(by_device >= data_bytes, f"{name}: copy.device_bytes is {by_device}, all of {data_bytes}")
    allowed = READ_SHARE_MAX * data_bytes + (by_host if target.split else 0)
    checks.check(work.read_bytes < allowed,
                 f"{name}: {work.read_bytes} bytes were read from the disk, allowed are {allowed:.0f}")


def check_host_path(checks, target, work, data_bytes, engines):
    name = target.name
    checks.check(work.copy["device_bytes"] == 0 and work.copy["host_bytes"] >= data_bytes,
                 f"{name}: the host copied {work.copy['host_bytes']} bytes")
    named = not engines or any(target.refusal in reason for reason in work.refused)
    checks.check(work.refused and named, f"{name}: copy.refused says why: {work.refused}")


def copy_large(checks, target, volume, engines):
    served = target.engine in engines
    data_bytes = (FILE_BLOCKS if served else HOST_FILE_BLOCKS) * d.BLOCK_BYTES
    os.truncate(REFERENCE, data_bytes + TAIL_BYTES)
    source, copy = volume.path("source"), volume.path("copy")
    h.run_command("cp", REFERENCE, source)
    with Difference(volume) as work:
        h.run_command("cp", source, copy)
    rate = data_bytes / work.seconds / 1e6
    h.note(f"{target.name}: cp of {data_bytes >> 20} MiB took {work.seconds:.2f} s, {rate:.0f} MB/s: {work.copy}")
    checks.record(target.name, cp_seconds=work.seconds, cp_mb_per_second=rate, cp_counters=work.copy,
                  cp_refused=work.refused, cp_read_bytes=work.read_bytes)
    if served:
        check_device_path(checks, target, work, data_bytes)
    else:
        check_host_path(checks, target, work, data_bytes, engines)
    h.drop_caches()
    checks.check(same(REFERENCE, copy), f"{target.name}: the copy equals the source")
    volume.remount()
    checks.check(same(REFERENCE, copy), f"{target.name}: the copy is the same after unmount and mount")
    checks.check(same(REFERENCE, source), f"{target.name}: so is the source")


def copy_by_choice(checks, target, volume):
    """Which way is taken depends on measured rates, which an emulation makes meaningless: only told."""
    with open(REFERENCE, "rb") as reference:
        volume.path("small").write_bytes(reference.read(CHOICE_BYTES))
    with Difference(volume) as work:
        h.run_command("cp", volume.path("small"), volume.path("small-copy"))
    h.note(f"{target.name}: cp left to itself: {work.copy} {work.refused}")
    h.drop_caches()
    checks.check(same(volume.path("small"), volume.path("small-copy")), f"{target.name}: it copied right")


def copy_scattered(checks, target, volume):
    """Gathering: a command takes as many ranges as the device allows."""
    source, copy = volume.path("scattered"), volume.path("gathered")
    blocks = SCATTERED_BLOCKS[target.name]
    write_scattered(source, blocks)
    with Difference(volume) as work:
        h.run_command("cp", source, copy)
    commands, expected = work.copy["device_commands"], blocks / target.command_blocks
    h.note(f"{target.name}: cp of {blocks} scattered blocks took {work.seconds:.2f} s: {work.copy}")
    checks.record(target.name, scattered_seconds=work.seconds, scattered_blocks=blocks,
                  scattered_commands=commands)
    checks.check(work.copy["device_bytes"] == blocks * d.BLOCK_BYTES,
                 f"{target.name}: all of {blocks} scattered blocks were copied by the device")
    checks.check(abs(commands - expected) <= COMMANDS_TOLERANCE * expected,
                 f"{target.name}: {commands} commands for them, expected {expected:.0f} "
                 f"({target.command_blocks} blocks a command)")
    h.drop_caches()
    checks.check(same(source, copy), f"{target.name}: the gathered copy equals the scattered file")


def job(checks, arguments):
    engines = arguments["engines"]
    fetch_reference()
    devices = d.Devices()
    # The largest files first: the reference is cut to each one's size.
    for target in sorted(make_targets(devices), key=lambda target: target.engine not in engines):
        volume = DeviceVolume(target)
        with checks.part(f"{target.name} ({target.path})", volume):
            device_capabilities(target)
            volume.make().mount()
            copy_by_choice(checks, target, volume)
            volume.options = device_options(target, engines, *(MEASURED_OPTIONS if engines else ()))
            volume.remount()
            copy_large(checks, target, volume, engines)
            if target.engine in engines and target.name in SCATTERED_BLOCKS:
                copy_scattered(checks, target, volume)
            volume.umount()
            volume.fsck(data=False)
            checks.check(True, f"{target.name}: fsck is clean")
            checks.record(target.name, devcap=device_capabilities(target))


if __name__ == "__main__":
    frame.run(job)
