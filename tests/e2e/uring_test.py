#!/usr/bin/env python3
"""The transport by io_uring (`-o io_uring`): what it is refused for, what it says of itself, and that it serves.

Skipped, with the server's own reason, where the kernel or the library cannot; the refusals are tested in any case. As root
it allows the transport (the module's parameter) while it runs.
"""
import errno
import os
import pathlib
import signal
import subprocess
import time

import harness as h
import transport_stress

STRESS_SECONDS = 20
MIB = 1 << 20
REMOVED = 5000
FORGETS_PER_SECOND_MAX = 4 * 200  # a thread takes one in 5 ms, and then what has come until then; few threads do
FORGET_SECONDS_MAX = 20
# What a program may hear whose server ends. ECANCELED: its request was on its way to a thread of the server's.
ENDED = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED, errno.ENODEV, errno.EIO)


def refusal(volume, options):
    """The one line with which a mount is refused."""
    done = subprocess.run([h.command(), "mount", "-o", options, volume.image, volume.mount_point],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60)
    h.check(done.returncode != 0, f"a mount with {options} was not refused")
    lines = done.stdout.strip().splitlines()
    h.check(len(lines) == 1, f"{len(lines)} lines instead of one: {done.stdout}")
    h.check(h.mount_type(volume.mount_point) is None, "refused, and mounted nevertheless")
    return lines[0]


def refusals(volume):
    h.check("io_uring=" in refusal(volume, "io_uring=perhaps"), "the option is not named")
    if "serves -o io_uring" not in h.run_command(h.command(), "--version"):
        line = refusal(volume, "io_uring")
        h.check("libfuse" in line and "COFS_LIBFUSE=pinned" in line, f"does not say by which library it can be had: {line}")
        h.note(f"refused: {line}")
        return
    if not h.IO_URING_SWITCH.exists() or h.IO_URING_SWITCH.read_text().strip() != "N":
        return
    line = refusal(volume, "io_uring")
    h.check("io_uring" in line, f"does not name the transport: {line}")
    if "libfuse" not in line:
        h.check(str(h.IO_URING_SWITCH) in line, f"does not say how to allow it: {line}")


def check_files(volume, contents):
    for name, data in contents.items():
        h.check(volume.path(name).read_bytes() == data, f"{name}: other bytes than were written")


def basics(volume, space):
    contents = {f"f{i}": space.random.randbytes(space.random.randrange(3 * MIB)) for i in range(12)}
    for name, data in contents.items():
        with open(volume.path(name), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    os.rename(volume.path("f0"), volume.path("moved"))
    contents["moved"] = contents.pop("f0")
    with open(volume.path("moved"), "rb") as source, open(volume.path("copy"), "wb") as target:
        left = len(contents["moved"])
        while left > 0:
            left -= os.copy_file_range(source.fileno(), target.fileno(), left)
    contents["copy"] = contents["moved"]
    os.unlink(volume.path("f1"))
    del contents["f1"]
    h.drop_caches()
    check_files(volume, contents)
    return contents


def forgetting(volume):
    """What is forgotten comes gathered, however fast files are removed, and all of it comes: their inodes are freed."""
    def forgets():
        requests = volume.statistics()["requests"]
        return requests.get("forget", 0) + requests.get("forget_multi", 0)

    def inodes():
        h.fsync_directory(volume.mount_point)  # they are counted as they are committed
        figures = os.statvfs(volume.mount_point)
        return figures.f_files - figures.f_ffree

    directory = volume.path("removed")
    directory.mkdir()
    before = inodes()
    for i in range(REMOVED):
        (directory / str(i)).touch()
    h.check(inodes() >= before + REMOVED, "the volume does not tell how many inodes it has")
    first, start = forgets(), time.monotonic()
    for i in range(REMOVED):
        (directory / str(i)).unlink()
    while inodes() > before:
        h.check(time.monotonic() - start < FORGET_SECONDS_MAX, f"{inodes() - before} removed files are not freed")
        time.sleep(0.01)
    count, seconds = forgets() - first, time.monotonic() - start
    h.note(f"{REMOVED} files removed and forgotten in {seconds:.2f} s by {count} requests")
    h.check(count <= FORGETS_PER_SECOND_MAX * seconds + 10, "forgets are not gathered")


def queue_threads(volume):
    """The processors of each queue's thread."""
    places = {}
    for task in pathlib.Path(f"/proc/{volume.server.pid}/task").iterdir():
        name = (task / "comm").read_text(encoding="utf-8").strip()
        if name.startswith("fuse-ring-"):
            places[int(name.rpartition("-")[2])] = os.sched_getaffinity(int(task.name))
    return places


def places(volume):
    """A queue's thread leaves its processor to a program that has many requests in flight, and comes back for single ones."""
    processors = os.sched_getaffinity(0)
    if len(processors) < 2:
        h.note("left out: the places of the queues' threads (one processor)")
        return
    # One of a processor that is off, or not the server's to use, is bound to none.
    at_home = {queue: {queue} if queue in processors else processors for queue in queue_threads(volume)}
    h.check(queue_threads(volume) == at_home, f"queues begin at {queue_threads(volume)}")
    fio = subprocess.Popen(["fio", "--name=deep", f"--filename={volume.path('deep')}", "--size=32M", "--rw=randread", "--bs=4k",
                            "--direct=1", "--ioengine=io_uring", "--iodepth=16", "--time_based=1", "--runtime=20"],
                           stdout=subprocess.DEVNULL, preexec_fn=h.die_with_parent)
    try:
        deadline = time.monotonic() + 15
        while not any(place == processors - {queue} for queue, place in queue_threads(volume).items()):
            h.check(time.monotonic() < deadline and fio.poll() is None,
                    f"16 requests in flight, and the queues' threads are at {queue_threads(volume)}")
            time.sleep(0.01)
    finally:
        fio.terminate()
        fio.wait()
    try:
        for processor in processors:
            os.sched_setaffinity(0, {processor})
            for i in range(600):
                volume.path(f"missing{processor}.{i}").exists()
    finally:
        os.sched_setaffinity(0, processors)
    h.check(queue_threads(volume) == at_home, f"single requests, and the queues' threads are at {queue_threads(volume)}")


def busy_umount(volume):
    """Refused while a file is open, and the mount goes on."""
    with open(volume.path("held"), "wb") as file:
        done = subprocess.run(["umount", str(volume.mount_point)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              check=False, timeout=60)
        h.check(done.returncode != 0, "a busy mount was unmounted")
        file.write(b"still here")
    h.check(volume.path("held").read_bytes() == b"still here", "the mount does not go on after a refused umount")


def ended_by_signal(volume):
    """SIGTERM while requests come: the server ends cleanly, whoever asked hears of an error and goes on."""
    child = os.fork()
    if child == 0:
        h.die_with_parent()
        try:
            for i in range(10 ** 9):
                with open(volume.path(f"signal{i % 10}"), "wb") as file:
                    file.write(b"x" * 5000)
                    os.fsync(file.fileno())
        except OSError as problem:
            os._exit(0 if problem.errno in ENDED else 1)
    time.sleep(0.5)
    volume.server.send_signal(signal.SIGTERM)
    status = volume.server.wait(timeout=60)
    volume.server = None
    h.check(status == 0, f"the server ended with {status} after SIGTERM")
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        h.check(time.monotonic() < deadline, "a program hangs whose server has ended")
        time.sleep(0.05)
    h.check(ended[1] == 0, f"a program heard another error than that its server ended (wait status {ended[1]})")
    if h.mount_type(volume.mount_point) is not None:
        volume.clear_dead_mount()


def killed(volume, contents):
    """kill -9 of the server with requests under way, then everything that was synced is there."""
    fd = os.open(volume.path("f2"), os.O_RDONLY)
    children = []
    for i in range(4):
        child = os.fork()
        if child == 0:
            h.die_with_parent()
            try:
                while True:
                    with open(volume.path(f"k{i}"), "wb") as file:
                        file.write(os.urandom(100_000))
                        os.fsync(file.fileno())
            except OSError:
                os._exit(0)
        children.append(child)
    time.sleep(0.5)
    volume.kill()
    for child in children:
        os.waitpid(child, 0)
    os.close(fd)
    volume.clear_dead_mount()
    volume.fsck()
    volume.mount()
    check_files(volume, contents)


def test(space):
    volume = space.volume(size="1G", options="io_uring")
    refusals(volume)
    with h.io_uring_allowed():
        serve(volume, space)


def serve(volume, space):
    try:
        volume.mount()
    except h.Failure:
        h.skip(volume.log.read_text(errors="replace").strip().splitlines()[-1])
    h.check(volume.statistics()["fuse"]["transport"] == "io_uring", "cofs stat does not tell the transport")
    h.check("by io_uring" in volume.log.read_text(), "the server's first line does not tell the transport")
    contents = basics(volume, space)
    places(volume)
    forgetting(volume)
    busy_umount(volume)
    transport_stress.stress(volume, STRESS_SECONDS, space.seed)
    check_files(volume, contents)
    killed(volume, contents)
    ended_by_signal(volume)
    volume.fsck()
    volume.mount()
    check_files(volume, contents)
    volume.umount()
    volume.fsck()


h.run(test)
