"""Many kinds of requests at once for a while, with a watchdog: what shows a transport that loses or doubles one.

stress(volume, seconds) works on a mounted volume with processes of several kinds: fio with 16 in flight (O_DIRECT with
verification, and through the cache), names (create, write, rename, fsync, unlink), copies (copy_file_range, compared),
large sequential data, and clients that get kill -9 in the midst of a request. Each counts its rounds; one that stands
still for too long is a hang, and so is a killed client that does not go. Then the server's threads and the kernel's
counter of waiting requests are printed, the connection is aborted, and a Failure raised.

Used by uring_test.py (short) and tools/bench/uring_stress (long). Not for: crashes; see tools/bench/soak.
"""
import ctypes
import mmap
import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import time

import harness as h

MIB = 1 << 20
BLOCK = 4096
STALL_SECONDS_MAX = 120  # without one round of a worker; on a very busy machine the longest took half a minute
FIO_SECONDS = 3
FILE_BYTES = 32 * MIB
# What a library says that has lost count of its ring.
BAD_LINES = ("Failed to get a ring SQE", "fuse: io_uring", "bad error value", "Invalid argument", "commit_id")


class Shared:
    """What workers tell the watchdog: rounds done, and how long the slowest took."""

    def __init__(self, kinds):
        self.kinds = kinds
        self.rounds = multiprocessing.Array(ctypes.c_uint64, len(kinds), lock=False)
        self.slowest_ms = multiprocessing.Array(ctypes.c_uint64, len(kinds), lock=False)
        self.stop = multiprocessing.Event()


def check_same(path, offset, expected):
    with open(path, "rb") as file:
        found = os.pread(file.fileno(), len(expected), offset)
    h.check(found == expected, f"{path}: other bytes at {offset} than were written")


# --- One round of each kind; `choice` is the worker's own source of random numbers ---

def fio(directory, choice, **options):
    arguments = {"name": "x", "directory": directory, "size": FILE_BYTES, "bs": "4k", "ioengine": "io_uring",
                 "iodepth": 16, "rw": "randrw", "runtime": FIO_SECONDS, "time_based": 1,
                 "randseed": choice.getrandbits(31), "thread": 1, **options}
    h.run_command("fio", *[f"--{key}={value}" for key, value in arguments.items()])


def direct_round(directory, choice):
    fio(directory, choice, direct=1, numjobs=2, bssplit="4k/80:64k/15:1m/5")


def verified_round(directory, choice):
    fio(directory, choice, direct=1, verify="crc32c", verify_backlog=64, verify_fatal=1, verify_state_save=0,
        rw="randwrite", time_based=0, io_size=8 * MIB)


def cached_round(directory, choice):
    fio(directory, choice, direct=0, invalidate=choice.randrange(2), fsync=choice.choice([0, 64, 512]))


def names_round(directory, choice):
    for i in range(40):
        path = directory / f"n{i}"
        data = choice.randbytes(choice.randrange(1, 20_000))
        with open(path, "wb") as file:
            file.write(data)
            if choice.random() < 0.2:
                file.flush()
                os.fsync(file.fileno())
        other = directory / f"m{choice.randrange(8)}"
        os.rename(path, other)
        check_same(other, 0, data)
        if choice.random() < 0.5:
            os.unlink(other)
        os.listdir(directory)


def copies_round(directory, choice):
    source, target = directory / "source", directory / "target"
    data = choice.randbytes(2 * MIB)
    with open(source, "wb") as file:
        file.write(data)
    with open(source, "rb") as from_file, open(target, "wb") as to_file:
        for _ in range(20):
            length = choice.randrange(1, MIB)
            start = choice.randrange(len(data) - length)
            at = choice.randrange(4 * MIB)
            if choice.random() < 0.5:
                start, at = start // BLOCK * BLOCK, at // BLOCK * BLOCK
            copied = os.copy_file_range(from_file.fileno(), to_file.fileno(), length, start, at)
            h.check(copied > 0, "copy_file_range copied nothing")
            check_same(target, at, data[start:start + copied])
        os.fsync(to_file.fileno())


def large_round(directory, choice):
    path = directory / "large"
    data = choice.randbytes(MIB)
    with open(path, "wb") as file:
        for _ in range(24):
            file.write(data)
        file.flush()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with open(path, "rb") as file:
        while piece := file.read(MIB):
            h.check(piece == data, "large: other bytes than were written")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[:BLOCK] = data[:BLOCK]
        view.flush()


def client(directory, seed):
    """Never ends by itself."""
    choice = random.Random(seed)
    work = choice.choice([direct_client, copying_client, syncing_client, naming_client])
    work(directory, choice)


def direct_client(directory, choice):
    memory = mmap.mmap(-1, MIB)
    fd = os.open(directory / f"k{choice.randrange(4)}", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    while True:
        os.pwritev(fd, [memory], choice.randrange(8) * MIB)
        os.preadv(fd, [memory], choice.randrange(8) * MIB)


def copying_client(directory, choice):
    fd = os.open(directory / "copied", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, choice.randbytes(4 * MIB), 0)
    while True:
        os.copy_file_range(fd, fd, 2 * MIB, 0, 4 * MIB)


def syncing_client(directory, choice):
    fd = os.open(directory / f"s{choice.randrange(4)}", os.O_CREAT | os.O_RDWR)
    while True:
        os.pwrite(fd, b"x" * 10_000, choice.randrange(MIB))
        os.fsync(fd)


def naming_client(directory, choice):
    while True:
        path = directory / f"c{choice.randrange(100)}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.unlink(path)


def kills_round(directory, choice):
    clients = []
    for _ in range(4):
        seed = choice.getrandbits(32)
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                client(directory, seed)
            except OSError:
                pass  # another client unlinked it, or the volume is full
            finally:
                os._exit(0)
        clients.append(child)
    time.sleep(choice.uniform(0.05, 0.5))
    for child in clients:
        os.kill(child, signal.SIGKILL)
    for child in clients:
        os.waitpid(child, 0)


ROUNDS = [("direct", direct_round), ("verified", verified_round), ("cached", cached_round), ("names", names_round),
          ("names", names_round), ("copies", copies_round), ("large", large_round), ("kills", kills_round),
          ("kills", kills_round)]


def work(index, do_round, directory, seed, shared):
    h.die_with_parent()
    choice = random.Random(seed)
    directory.mkdir(exist_ok=True)
    while not shared.stop.is_set():
        start = time.monotonic()
        try:
            do_round(directory, choice)
        except (h.Failure, OSError) as problem:
            print(f"{shared.kinds[index]}: {type(problem).__name__}: {problem}", flush=True)
            os._exit(1)
        shared.rounds[index] += 1
        shared.slowest_ms[index] = max(shared.slowest_ms[index], int(1000 * (time.monotonic() - start)))
    os._exit(0)


# --- The watchdog ---

def connection_directory(mount_point):
    return pathlib.Path("/sys/fs/fuse/connections") / str(os.minor(device_of(mount_point)))


def device_of(mount_point):
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        for line in table:
            fields = line.split()
            if fields[4] == str(mount_point):
                major, minor = fields[2].split(":")
                return os.makedev(int(major), int(minor))
    raise h.Failure("the mount is gone")


def describe_hang(volume):
    lines = []
    for name in ("waiting",):
        try:
            lines.append(f"{name}: {(connection_directory(volume.mount_point) / name).read_text().strip()}")
        except OSError as problem:
            lines.append(f"{name}: {problem}")
    for task in sorted(pathlib.Path(f"/proc/{volume.server.pid}/task").iterdir()):
        try:
            lines.append(f"{(task / 'comm').read_text().strip()}: {(task / 'wchan').read_text().strip()}")
        except OSError:
            continue
    return "\n".join(lines)


def abort(volume):
    try:
        (connection_directory(volume.mount_point) / "abort").write_text("1")
    except (OSError, h.Failure):
        pass  # it is gone already


def log_complaints(volume):
    text = volume.log.read_text(errors="replace")
    return [line for line in text.splitlines() if any(bad in line for bad in BAD_LINES)]


def watch(volume, processes, shared, seconds):
    start = time.monotonic()
    seen = [(0, start)] * len(shared.kinds)
    told = start
    while time.monotonic() < start + seconds:
        time.sleep(0.5)
        now = time.monotonic()
        for i, kind in enumerate(shared.kinds):
            if processes[i].exitcode is not None:
                raise h.Failure(f"worker {kind} ended with {processes[i].exitcode}: its last line is above")
            if shared.rounds[i] != seen[i][0]:
                seen[i] = (shared.rounds[i], now)
            elif now - seen[i][1] > STALL_SECONDS_MAX:
                raise h.Failure(f"HANG: {kind} stands still for {STALL_SECONDS_MAX} s\n{describe_hang(volume)}")
        h.check(volume.server.poll() is None, f"the server ended with {volume.server.returncode}")
        complaints = log_complaints(volume)
        h.check(not complaints, f"the library complains: {complaints[:1]}")
        if now > told + 60:
            told = now
            h.note(f"{now - start:.0f} s: " + ", ".join(f"{k} {r}" for k, r in zip(shared.kinds, shared.rounds)))


def stress(volume, seconds, seed):
    """Works on `volume` for so long. Raises Failure on a hang, wrong data, or a complaint of the library."""
    h.require_programs("fio")
    shared = Shared([kind for kind, _ in ROUNDS])
    processes = []
    for i, (kind, do_round) in enumerate(ROUNDS):
        directory = volume.path(f"{kind}{i}")
        processes.append(multiprocessing.Process(target=work, args=(i, do_round, directory, seed + i, shared)))
        processes[-1].start()
    try:
        watch(volume, processes, shared, seconds)
        shared.stop.set()
        for i, process in enumerate(processes):
            process.join(STALL_SECONDS_MAX)
            h.check(process.exitcode is not None, f"HANG: {shared.kinds[i]} does not end\n{describe_hang(volume)}")
            h.check(process.exitcode == 0, f"worker {shared.kinds[i]} ended with {process.exitcode}")
    except h.Failure:
        abort(volume)
        raise
    finally:
        for process in processes:
            if process.exitcode is None:
                process.kill()
    h.note("rounds (slowest): " + ", ".join(f"{kind} {rounds} ({slowest / 1000:.1f} s)" for kind, rounds, slowest in
                                            zip(shared.kinds, shared.rounds, shared.slowest_ms)))
    return sum(shared.rounds)
