#!/usr/bin/env python3
"""On a sparse volume of 100 TiB nothing takes longer because there is more of it, the server's memory keeps to
its limit, and mounts are quick, also after a kill.

What an operation costs is the server's CPU time, which other programs on the machine disturb less than they do
the clock: the same operations in a small and in a large directory, in a file of few and of many extents, with few
and with many open files. The large is twenty times the small (in the short form), so what is O(n) costs twenty times
as much; the limit is RATIO_MAX.

COFS_SCALE: "full": a million entries and extents, beside ten million files (COFS_SCALE_FILES) that `populate`
(beside the cofs command) makes; on xfs in a file that takes 20 GiB, about 7 minutes. Else 100,000, on a tmpfs.
"""
import ctypes
import os
import pathlib
import resource
import shutil
import subprocess
import tempfile
import time

import harness as h

FULL = os.environ.get("COFS_SCALE") == "full"
MANY = 1_000_000 if FULL else 100_000
FEW = MANY // 20
FILES = h.number_from("COFS_SCALE_FILES", 10_000_000)
PER_DIRECTORY = 20_000
OPEN_FILES = 20_000 if FULL else 10_000
RANDOM_WRITES = (1 << 30 if FULL else 192 << 20) // 4096
BATCH = 1000
RATIO_MAX = 4.0  # of twenty; noise and the depth of the tree stay below
MEMORY_KIB_MAX = 256 << 10
CLEAN_SECONDS_MAX = 0.2
RECOVERY_SECONDS_MAX = 5.0
CHURN_SECONDS = 60 if FULL else 6
BLOCK = 4096
HOST_BYTES = 64 << 30
PUNCH_HOLE = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
LIBC = ctypes.CDLL(None)
COST_LEAST_US = 0.2  # what is below that is not compared
NODE_READ_US, NODE_WRITE_US = 25, 4
READS_MAX, WRITES_MAX = 4, 16  # of an operation on one block or name


def cpu_seconds(pid):
    """Of all threads, also those that have ended; as clock_getcpuclockid(3) names that clock."""
    return time.clock_gettime(~pid << 3 | 2)


def peak_kib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise h.Failure("no VmHWM")


class Cost:
    """Of one operation: the server's CPU microseconds, tree nodes read, node images written."""

    def __init__(self, micros, reads, writes):
        self.micros, self.reads, self.writes = micros, reads, writes


class Meter:
    """What operations cost, by name: in the small and in the large case."""

    def __init__(self, volume):
        self.volume = volume
        self.costs = {}

    def measure(self, name, case, operations, action):
        """Runs action() and keeps the cheapest of what was measured under this name and case."""
        pid = self.volume.server.pid
        io_before = self.volume.statistics()
        before = cpu_seconds(pid)
        action()
        micros = (cpu_seconds(pid) - before) * 1e6 / operations
        io_after = self.volume.statistics()

        def nodes(counter):
            size = io_after["volume"]["node_bytes"]
            return (io_after["io"][counter] - io_before["io"][counter]) / size / operations

        # Data is read by whole nodes or less, so that what is read for it counts, too: never too little.
        cost = Cost(micros, nodes("read_bytes"), nodes("node_bytes"))
        both = self.costs.setdefault(name, {})
        both[case] = min(both.get(case, cost), cost, key=lambda c: c.micros)

    def compare(self):
        h.note(f"{'server CPU, us each':<30} {'small':>8} {'large':>8} {'ratio':>6}   nodes read, written (large)")
        worst = []
        for name, both in self.costs.items():
            small, large = both["small"], both["large"]
            h.check(min(small.micros, large.micros) > 0.01, f"{name}: the server was not asked")
            least = max(small.micros, COST_LEAST_US)
            h.note(f"{name:<30} {small.micros:8.2f} {large.micros:8.2f} {max(large.micros, COST_LEAST_US) / least:6.2f}"
                   f"   {large.reads:.2f}, {large.writes:.2f}")
            # What does not fit the cache is read, a node for each level of leaves that is touched, and a checkpoint
            # that falls into the batch writes what all before it have changed.
            allowed = (RATIO_MAX * least + NODE_READ_US * min(large.reads, READS_MAX) +
                       NODE_WRITE_US * min(large.writes, WRITES_MAX))
            if large.micros > allowed:
                worst.append(f"{name}: {large.micros:.1f} us, more than {allowed:.1f}")
            if large.reads > max(READS_MAX, RATIO_MAX * small.reads):
                worst.append(f"{name}: {large.reads:.1f} nodes read each")
        h.check(not worst, "; ".join(worst))


# --- Directories ---------------------------------------------------------------------------------------


def create(directory, first, count):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for i in range(first, first + count):
        os.close(os.open(f"entry-{i:07}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


def look_up_absent(directory, first):
    for i in range(first, first + BATCH):
        h.check(not os.path.lexists(f"{directory}/absent-{i}"), "an absent name")


def list_all(directory, expected):
    with os.scandir(directory) as entries:
        h.check(sum(1 for _ in entries) == expected, f"entries of {directory}")


def unlink(directory, first, count):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for i in range(first, first + count):
        os.unlink(f"entry-{i:07}", dir_fd=fd)
    os.close(fd)


def directories(volume, meter):
    rates = []
    for case, count in (("small", FEW), ("large", MANY)):
        directory = volume.path(f"directory-{case}")
        directory.mkdir()
        start = time.monotonic()
        create(directory, 0, count - 3 * BATCH)
        h.fsync_directory(directory)
        for i in range(3):
            meter.measure("create", case, BATCH, lambda i=i: create(directory, count - (3 - i) * BATCH, BATCH))
        rates.append(f"{count} creates in {h.seconds_since(start):.1f} s")
        # Once: the kernel answers the next one from its cache.
        meter.measure("list, per entry", case, count, lambda: list_all(directory, count))
        for i in range(3):
            meter.measure("look up an absent name", case, BATCH, lambda i=i: look_up_absent(directory, i * BATCH))
        for i in range(3):
            first = i * BATCH
            meter.measure("unlink", case, BATCH, lambda first=first: unlink(directory, first, BATCH))
        list_all(directory, count - 3 * BATCH)
    h.note("; ".join(rates))


# --- Extents -------------------------------------------------------------------------------------------


def make_extents(path, count):
    """Every second block, backwards: extents that never join."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    data = os.urandom(BLOCK)
    for i in reversed(range(count)):
        os.pwrite(fd, data, 2 * i * BLOCK)
    os.fsync(fd)
    return fd


def overwrite(fd, blocks, random):
    data = os.urandom(BLOCK)
    for _ in range(BATCH):
        os.pwrite(fd, data, 2 * random.randrange(blocks) * BLOCK)
    os.fsync(fd)


def read_random(fd, blocks, random):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(BATCH):
        h.check(len(os.pread(fd, BLOCK, 2 * random.randrange(blocks) * BLOCK)) == BLOCK, "a short read")


def seek_random(fd, blocks, random):
    for _ in range(BATCH):
        block = 2 * random.randrange(blocks - 1)
        h.check(os.lseek(fd, block * BLOCK, os.SEEK_HOLE) == (block + 1) * BLOCK, "a hole")


def walk(fd, extents):
    """All of a file's data and holes, from its start; `extents` of them at most."""
    at = 0
    for _ in range(extents):
        at = os.lseek(fd, os.lseek(fd, at, os.SEEK_DATA), os.SEEK_HOLE)


def punch(fd, blocks, random):
    for _ in range(BATCH):
        offset = ctypes.c_int64(2 * random.randrange(blocks) * BLOCK)
        h.check(LIBC.fallocate(fd, PUNCH_HOLE, offset, ctypes.c_int64(BLOCK)) == 0, "fallocate failed")


def shorten(fd, extents):
    size = os.fstat(fd).st_size
    for i in range(BATCH):
        os.ftruncate(fd, size - (i + 1) * 2 * BLOCK)


def copy_pieces(fd, target, blocks, random):
    for i in range(BATCH):
        done = os.copy_file_range(fd, target, BLOCK, 2 * random.randrange(blocks) * BLOCK, i * BLOCK)
        h.check(done == BLOCK, "a short copy")


def extents(volume, meter, random):
    shared = volume.path("shared")
    shared.mkdir()
    os.setxattr(shared, "user.cofs.clone", b"share")
    for case, count in (("small", FEW), ("large", MANY)):
        path = volume.path(f"extents-{case}")
        start = time.monotonic()
        fds = []
        meter.measure("write an extent", case, count, lambda: fds.append(make_extents(path, count)))
        fd = fds[0]
        made = h.seconds_since(start)
        for i in range(3):
            meter.measure("overwrite a block", case, BATCH, lambda: overwrite(fd, count, random))
            meter.measure("read a block", case, BATCH, lambda: read_random(fd, count, random))
            meter.measure("find the next hole", case, BATCH, lambda: seek_random(fd, count, random))
        meter.measure("walk data and holes", case, FEW, lambda: walk(fd, FEW))
        target = os.open(shared / f"pieces-{case}", os.O_CREAT | os.O_RDWR, 0o644)
        meter.measure("share a block", case, BATCH, lambda: copy_pieces(fd, target, count, random))
        whole = os.open(shared / f"whole-{case}", os.O_CREAT | os.O_RDWR, 0o644)
        meter.measure("share all, per extent", case, count, lambda: share_all(fd, whole))
        for i in range(3):
            meter.measure("punch a hole", case, BATCH, lambda: punch(fd, count, random))
        meter.measure("map all, per extent", case, count, lambda: map_all(path, count))
        meter.measure("truncate an extent away", case, BATCH, lambda: shorten(fd, count))
        meter.measure("truncate all, per extent", case, count, lambda: os.ftruncate(fd, 0))
        for open_file in (fd, target, whole):
            os.close(open_file)
        os.unlink(shared / f"whole-{case}")
        h.note(f"{count} extents written in {made:.1f} s")


def share_all(source, target):
    size = os.fstat(source).st_size
    done = 0
    while done < size:
        n = os.copy_file_range(source, target, size - done, done, done)
        h.check(n > 0, "a copy of nothing")
        done += n


def map_all(path, count):
    lines = h.run_command(h.command(), "map", path).count("\n")
    h.check(lines > count // 2, f"{lines} lines about {count} extents")


# --- Open files, memory, mounts ------------------------------------------------------------------------


def open_files(volume, meter):
    """The same work with few and with many files open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(OPEN_FILES, hard - 200)
    directory = volume.path("open")
    directory.mkdir()
    create(directory, 0, count)
    held = []
    work = [0]

    def one_round():
        work[0] += 1
        for i in range(BATCH):
            fd = os.open(f"{directory}/work-{work[0]}-{i}", os.O_CREAT | os.O_RDWR, 0o644)
            os.pwrite(fd, b"some", 0)
            os.close(fd)

    for _ in range(3):
        meter.measure("create and write, files open", "small", BATCH, one_round)
    try:
        for i in range(count):
            held.append(os.open(f"{directory}/entry-{i:07}", os.O_RDWR))
            os.pwrite(held[-1], b"data", 0)
        h.fsync_directory(directory)
        for _ in range(3):
            meter.measure("create and write, files open", "large", BATCH, one_round)
    finally:
        for fd in held:
            os.close(fd)


def write_at_random(volume, random):
    """4 KiB at a time, here and there in a file, as fast as the server takes them."""
    fd = os.open(volume.path("random"), os.O_CREAT | os.O_RDWR, 0o644)
    blocks = 4 * RANDOM_WRITES
    data = os.urandom(1 << 20)
    start = time.monotonic()
    for i in range(RANDOM_WRITES):
        at = (i % 256) * BLOCK
        os.pwrite(fd, data[at:at + BLOCK], random.randrange(blocks) * BLOCK)
    os.fsync(fd)
    os.close(fd)
    return RANDOM_WRITES / h.seconds_since(start)


def churn(volume):
    """Until the time is over: small files with data, large writes, deletions, nothing made durable on purpose."""
    root = volume.path("churn")
    root.mkdir()
    start, i = time.monotonic(), 0
    data = os.urandom(1 << 20)
    while h.seconds_since(start) < CHURN_SECONDS:
        with open(root / f"c{i}", "wb") as file:
            file.write(data[:3000 if i % 100 else 1 << 20])
        if i % 3 == 2:
            os.unlink(root / f"c{i - 2}")
        i += 1
    return i


def timed_mount(volume, options=""):
    h.drop_caches()
    volume.options = options
    start = time.monotonic()
    volume.mount()
    return h.seconds_since(start)


def mounts(volume):
    times = []
    for _ in range(5):
        volume.umount()
        times.append(timed_mount(volume))
    clean = min(times)
    h.check(volume.statistics()["volume"]["was_clean"], "an unmounted volume was not clean")
    made = churn(volume)
    volume.kill()
    volume.clear_dead_mount()
    times = []
    for options in ("ro", "ro", ""):  # read-only mounts replay the same log in memory
        times.append(timed_mount(volume, options))
        info = volume.statistics()["volume"]
        h.check(not info["was_clean"], "the kill left a clean volume: nothing was recovered")
        if options:
            volume.umount()
    recovery = min(times)
    h.note(f"clean mount {clean:.3f} s; killed after {made} files, recovery {recovery:.3f} s "
           f"({info['replayed_commits']} commits, {info['replayed_log_bytes'] >> 10} KiB of log)")
    h.check(clean < CLEAN_SECONDS_MAX, f"a clean mount took {clean:.2f} s")
    h.check(recovery < RECOVERY_SECONDS_MAX, f"a recovery took {recovery:.2f} s")


def check_memory(volume, when, peaks):
    peaks.append(peak_kib(volume.server.pid))
    memory = volume.statistics()["memory"]
    h.note(f"{when}: {peaks[-1] >> 10} MiB resident at most; {memory}")


# --- Where an image of 100 TiB can be ------------------------------------------------------------------


def holds_huge_files(directory):
    probe = pathlib.Path(directory) / "probe"
    try:
        with open(probe, "wb") as file:
            file.truncate(100 << 40)
        return True
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


class Host:
    """A directory on a filesystem that holds files of 100 TiB (ext4 does not)."""

    def __init__(self, space):
        self.mounted = None
        self.temporary = None
        self.directory = space.directory
        if holds_huge_files(self.directory):
            return
        if FULL:
            h.require_programs("mkfs.xfs")
            image = space.directory / "host.img"
            with open(image, "wb") as file:
                file.truncate(HOST_BYTES)
            h.run_command("mkfs.xfs", "-q", image)
            self.directory = space.directory / "host"
            self.directory.mkdir()
            h.run_command("mount", "-o", "loop", image, self.directory)
            self.mounted = self.directory
        elif os.access("/dev/shm", os.W_OK) and holds_huge_files("/dev/shm"):
            self.temporary = tempfile.mkdtemp(prefix="cofs-scale-", dir="/dev/shm")
            self.directory = pathlib.Path(self.temporary)
        else:
            h.skip("no filesystem for a file of 100 TiB: neither COFS_TEST_DIR nor /dev/shm")

    def dispose(self):
        if self.mounted is not None:
            # A server that was killed a moment ago may not be gone: then it goes with the last user.
            if subprocess.run(["umount", str(self.mounted)], stderr=subprocess.DEVNULL, check=False).returncode != 0:
                subprocess.run(["umount", "-l", str(self.mounted)], check=True)
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)


def populate(volume):
    program = pathlib.Path(h.command()).parent / "populate"
    h.check(os.access(program, os.X_OK), f"no {program}")
    with subprocess.Popen([str(program), str(volume.image), str(FILES), str(PER_DIRECTORY)]) as child:
        h.check(child.wait() == 0, "populate failed")


def fsck_memory(volume):
    start = time.monotonic()
    volume.fsck(data=False)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    h.note(f"fsck in {h.seconds_since(start):.1f} s; the largest child so far took {peak >> 10} MiB")


def measure(volume, random):
    if FULL:
        populate(volume)
    start = time.monotonic()
    meter = Meter(volume)
    peaks = []
    volume.mount()
    h.note(f"mounted in {h.seconds_since(start):.3f} s")
    directories(volume, meter)
    check_memory(volume, "directories", peaks)
    extents(volume, meter, random)
    check_memory(volume, "extents", peaks)
    open_files(volume, meter)
    check_memory(volume, "open files", peaks)
    rate = write_at_random(volume, random)
    h.note(f"{RANDOM_WRITES} random writes, {rate:.0f} a second")
    check_memory(volume, "random writes", peaks)
    mounts(volume)
    check_memory(volume, "after the recovery", peaks)
    volume.umount()
    fsck_memory(volume)
    meter.compare()
    h.check(max(peaks) <= MEMORY_KIB_MAX, f"the server took {max(peaks) >> 10} MiB")


def test(space):
    host = Host(space)
    try:
        volume = h.Volume(host.directory, size="100T")
        space.volumes.append(volume)
        try:
            measure(volume, space.random)
        finally:
            volume.dispose()
    finally:
        host.dispose()


h.run(test)
