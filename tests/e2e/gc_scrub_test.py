#!/usr/bin/env python3
"""`cofs gc` and `cofs scrub` on a mounted volume: what they do and tell, their exit codes, damage put into the
image below a running server, who may start and end them, and that neither keeps the volume from being unmounted.
"""
import errno
import json
import mmap
import os
import pty
import select
import signal
import subprocess
import time

import harness as h

MIB = 1 << 20
BLOCK_BYTES = 4096
SUPERBLOCK_OFFSET = 65_536
NODE_MAGIC = b"COFNODE1"
NODE_BYTES = 8192
NOBODY = 65_534
EXIT_CLEAN, EXIT_REPAIRED, EXIT_ERRORS, EXIT_NOT_RUN = 0, 1, 4, 8
UMOUNT_SECONDS_MAX = 10
JOB_SECONDS_MAX = 60


def cofs_json(*arguments, expect=0):
    return json.loads(h.run_command(h.command(), *arguments, "--json", expect=expect))


def scrub(volume, expect, *options):
    return cofs_json("scrub", *options, volume.mount_point, expect=expect)


def wait_for_state(volume, name, is_it):
    deadline = time.monotonic() + JOB_SECONDS_MAX
    while not is_it(state := cofs_json(name, "--status", volume.mount_point, expect=None)["state"]):
        h.check(time.monotonic() < deadline, f"cofs {name} stays {state}")
        time.sleep(0.02)


def on_terminal(*arguments, expect=0):
    """Runs a program with a pseudo terminal as its stderr and stdout; returns what it showed."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen([str(a) for a in arguments], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + h.COMMAND_SECONDS_MAX
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            part = os.read(ours, 4096)
        except OSError as problem:  # the other end is closed
            h.check(problem.errno == errno.EIO, str(problem))
            break
        if not part:
            break
        shown += part
    os.close(ours)
    status = child.wait(timeout=h.COMMAND_SECONDS_MAX)
    text = shown.decode(errors="replace")
    h.check(status == expect, f"{arguments}: exit status {status}, not {expect}\n{text}")
    return text


def places_of(image, wanted):
    """Offsets of blocks of the image that begin with these bytes."""
    found = []
    with open(image, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(wanted)
        while at >= 0:
            if at % BLOCK_BYTES == 0:
                found.append(at)
            at = content.find(wanted, at + 1)
    return found


def damage(image, offset):
    """Another byte in the middle of the block: below the server, which reads the image by itself."""
    with open(image, "r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, offset + 2000)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 0x10]), offset + 2000)
        os.fsync(file.fileno())


def write_file(volume, name, data):
    path = volume.path(name)
    with open(path, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    return path


def fragment(space, volume, directory, count):
    """Many files of 64 KiB, every fourth of which stays; returns their contents by path."""
    volume.path(directory).mkdir()
    contents = {}
    for i in range(count):
        data = space.random.randbytes(64 << 10)
        path = write_file(volume, f"{directory}/f{i}", data) if i % 16 == 15 else volume.path(directory, f"f{i}")
        path.write_bytes(data)
        contents[path] = data
    os.sync()
    for i, path in enumerate(list(contents)):
        if i % 4 != 0:
            path.unlink()
            del contents[path]
    h.run_command(h.command(), "sync", volume.mount_point)
    return contents


def check_contents(contents):
    h.drop_caches()
    for path, data in contents.items():
        h.check(path.read_bytes() == data, f"{path.name} is not what was written")


def collect(space, volume):
    none = cofs_json("gc", "--status", volume.mount_point)
    h.check(none["state"] == "never" and none["number"] == 0, f"a collection before the first: {none}")
    h.check("none" in h.run_command(h.command(), "gc", "--status", volume.mount_point), "gc --status in words")
    contents = fragment(space, volume, "first", 400)
    before = volume.statistics()
    done = cofs_json("gc", "--wait", volume.mount_point)
    after = volume.statistics()
    h.check(done["state"] == "done" and done["end_reason"] == "nothing gains", f"gc: {done}")
    h.check(done["number"] == 1 and done["segments_emptied"] >= 5, f"gc emptied too little: {done}")
    h.check(done["segments_emptied"] == after["gc"]["segments_freed"], f"{done}, {after['gc']}")
    h.check(done["moved_bytes"] == after["gc"]["relocated_bytes"] > 0, f"{done}, {after['gc']}")
    h.check(done["moved_bytes"] == done["device_bytes"] + done["host_bytes"], f"gc: {done}")
    h.check(after["space"]["free_segments"] > before["space"]["free_segments"] + 3, "no segment became free")
    h.check(done["ready_bytes"] <= done["total_bytes"] and done["won_bytes"] > 0, f"gc: {done}")
    check_contents(contents)
    words = on_terminal(h.command(), "gc", "--wait", volume.mount_point)
    h.check("nothing more gains" in words and "0 segments emptied" in words, f"gc --wait in words: {words}")
    # As far as asked.
    contents |= fragment(space, volume, "second", 400)
    ready = cofs_json("gc", "--status", volume.mount_point)
    percent = int(100 * ready["ready_bytes"] / ready["total_bytes"]) + 3
    done = cofs_json("gc", "--wait", "--until-free", percent, volume.mount_point)
    h.check(done["end_reason"] == "free enough" and done["until_free_percent"] == percent, f"gc: {done}")
    h.check(100 * done["ready_bytes"] >= percent * done["total_bytes"] * 0.99, f"gc: {done}")
    h.check(cofs_json("gc", volume.mount_point)["state"] == "running", "gc without --wait")
    for wrong in (["--until-free", "0"], ["--until-free", "101"], ["--status", "--cancel"]):
        h.run_command(h.command(), "gc", *wrong, volume.mount_point, expect=1)
    wait_for_state(volume, "gc", lambda state: state != "running")
    h.check("none is running" in h.run_command(h.command(), "gc", "--cancel", volume.mount_point, expect=1),
            "gc --cancel with nothing to cancel")
    check_contents(contents)
    return contents


def scrub_damage(space, volume):
    volume.options = ""
    volume.remount()
    clean = scrub(volume, EXIT_CLEAN)
    h.check(clean["result"] == "clean" and clean["problem_count"] == 0 and not clean["problems"], f"scrub: {clean}")
    h.check(clean["done_bytes"] >= volume.statistics()["space"]["live_bytes"], f"scrub: {clean}")
    # Data: one copy, reported.
    data = space.random.randbytes(16 * BLOCK_BYTES)
    path = write_file(volume, "victim", data)
    h.run_command(h.command(), "sync", volume.mount_point)
    places = places_of(volume.image, data[5 * BLOCK_BYTES:6 * BLOCK_BYTES])
    h.check(len(places) == 1, f"the block lies at {places}")
    damage(volume.image, places[0])
    found = scrub(volume, EXIT_ERRORS)
    line = f"inode {path.stat().st_ino}: {BLOCK_BYTES} bytes at offset {5 * BLOCK_BYTES} are damaged"
    h.check(found["result"] == "errors" and found["data_errors"] == 1 and len(found["problems"]) == 1, f"{found}")
    h.check(found["problems"][0].startswith(line), f"{found['problems']}, not {line}")
    h.check(line in volume.log.read_text(), "the server's log does not name the damage")
    h.check(line in h.run_command(h.command(), "scrub", volume.mount_point, expect=EXIT_ERRORS), "scrub in words")
    h.drop_caches()
    with open(path, "rb") as file:
        h.check(file.read(5 * BLOCK_BYTES) == data[:5 * BLOCK_BYTES], "what is before the damage")
        try:
            os.pread(file.fileno(), BLOCK_BYTES, 5 * BLOCK_BYTES)
            h.check(False, "damaged data was read")
        except OSError as problem:
            h.check(problem.errno == errno.EIO, str(problem))
    path.unlink()
    h.run_command(h.command(), "sync", volume.mount_point)
    scrub(volume, EXIT_CLEAN)
    # Metadata: mended. All nodes that there are have one bad copy.
    volume.remount()
    damaged = 0
    nodes = {}
    with open(volume.image, "rb", buffering=0) as file:
        for place in places_of(volume.image, NODE_MAGIC):
            nodes.setdefault(os.pread(file.fileno(), NODE_BYTES, place), []).append(place)
    for copies in nodes.values():
        if len(copies) == 2:
            damage(volume.image, space.random.choice(copies))
            damaged += 1
    damage(volume.image, SUPERBLOCK_OFFSET)
    mended = scrub(volume, EXIT_REPAIRED)
    h.check(mended["result"] == "repaired" and mended["superblock_errors"] == 1, f"scrub: {mended}")
    h.check(0 < mended["node_errors"] <= damaged and mended["repaired"] == mended["node_errors"] + 1, f"{mended}")
    scrub(volume, EXIT_CLEAN)
    counted = volume.statistics()["scrub"]
    h.check(counted["runs"] == 2 and counted["repaired"] == mended["repaired"], f"cofs stat: {counted}")
    h.check(abs(counted["last_end_seconds"] - time.time()) < 60, f"cofs stat: {counted}")


def watch_and_end(volume):
    total = scrub(volume, EXIT_CLEAN)["done_bytes"]
    shown = on_terminal(h.command(), "scrub", "--rate", max(MIB, total // 2), volume.mount_point)
    h.check("\rscrubbing: " in shown and " %), " in shown and " left" in shown, f"no progress was shown: {shown!r}")
    h.check("scrub done: clean" in shown, f"no summary was shown: {shown!r}")
    silent = h.run_command(h.command(), "scrub", volume.mount_point)
    h.check("\r" not in silent and silent.count("\n") == 1, f"progress without a terminal: {silent!r}")
    h.run_command(h.command(), "scrub", "--background", "--wait", volume.mount_point, expect=EXIT_NOT_RUN)
    # A slow one: others are refused, ^C ends the waiting, --cancel the scrub.
    waiting = subprocess.Popen([h.command(), "scrub", "--rate", "4K", str(volume.mount_point)],
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for_state(volume, "scrub", lambda state: state == "running")
    busy = h.run_command(h.command(), "scrub", volume.mount_point, expect=EXIT_NOT_RUN)
    h.check("running already" in busy, f"a second scrub: {busy}")
    waiting.send_signal(signal.SIGINT)
    _, complaint = waiting.communicate(timeout=30)
    h.check(waiting.returncode == EXIT_NOT_RUN and "interrupted" in complaint, f"{waiting.returncode} {complaint}")
    h.check(scrub(volume, None, "--status")["state"] == "running", "^C ended the scrub")
    h.run_command(h.command(), "scrub", "--cancel", volume.mount_point)
    wait_for_state(volume, "scrub", lambda state: state != "running")
    ended = scrub(volume, EXIT_NOT_RUN, "--status")
    h.check(ended["state"] == "cancelled" and ended["result"] == "incomplete", f"scrub --status: {ended}")
    started = scrub(volume, EXIT_CLEAN, "--background", "--rate", "4K")
    h.check(started["state"] == "running" and started["number"] == ended["number"] + 1, f"--background: {started}")
    h.run_command(h.command(), "scrub", "--cancel", volume.mount_point)
    wait_for_state(volume, "scrub", lambda state: state != "running")


def refuse_others(space, volume):
    os.chmod(space.directory, 0o755)
    for arguments, expect in ((["gc"], 1), (["gc", "--cancel"], 1), (["scrub"], EXIT_NOT_RUN),
                              (["scrub", "--cancel"], EXIT_NOT_RUN)):
        said = h.run_command(h.command(), *arguments, volume.mount_point, expect=expect, user=NOBODY)
        h.check("only root" in said, f"{arguments}: {said}")
    h.run_command(h.command(), "gc", "--status", volume.mount_point, user=NOBODY)
    h.run_command(h.command(), "scrub", "--status", volume.mount_point, expect=EXIT_NOT_RUN, user=NOBODY)
    for name in ("gc", "scrub"):
        said = h.run_command(h.command(), name, space.directory, expect=None)
        h.check("not on a mounted cofs volume" in said, f"cofs {name} elsewhere: {said}")


def test(space):
    # Without over-provisioning: else what users may fill is bounded by what lives, whatever is collected.
    volume = space.volume(size="256M", options="gc=off", mkfs=("--over-provision", "0")).mount()
    contents = collect(space, volume)
    scrub_damage(space, volume)
    watch_and_end(volume)
    if os.geteuid() == 0:
        refuse_others(space, volume)
    # Neither a scrub nor one who waits for it keeps the volume.
    waiting = subprocess.Popen([h.command(), "scrub", "--rate", "4K", str(volume.mount_point)],
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(0.5)
    start = time.monotonic()
    volume.umount()
    h.check(h.seconds_since(start) < UMOUNT_SECONDS_MAX, "the unmount waited for a scrub")
    waiting.communicate(timeout=30)
    h.check(waiting.returncode == EXIT_NOT_RUN, f"whoever waited got {waiting.returncode}")
    volume.fsck()
    volume.mount()
    check_contents(contents)
    # A read-only mount reports and repairs nothing.
    volume.options = "ro"
    volume.remount()
    damage(volume.image, SUPERBLOCK_OFFSET)
    left = scrub(volume, EXIT_ERRORS)
    h.check(left["superblock_errors"] == 1 and left["repaired"] == 0, f"scrub of a read-only mount: {left}")
    h.check("read-only" in h.run_command(h.command(), "gc", volume.mount_point, expect=1), "gc on a read-only mount")
    volume.options = ""
    volume.remount()
    # The mount itself may have written that copy.
    h.check(scrub(volume, None)["result"] in ("clean", "repaired"), "the superblock copy stays bad")
    volume.umount()
    volume.fsck()


h.run(test)
