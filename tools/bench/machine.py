"""The machine that is measured on: its commands, caches, memory, mounts and the one loop device.

Nothing here knows of a filesystem's kind or of a row.
"""
import contextlib
import errno
import mmap
import os
import pathlib
import platform
import random
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20
GIB = 1 << 30


def die(message):
    sys.exit(f"bench: {message}")


def clean_up_when_ended():
    """SIGTERM ends the script as an error does: nothing stays mounted."""
    signal.signal(signal.SIGTERM, lambda *_: die("ended by a signal"))


def note(message):
    print(message, file=sys.stderr, flush=True)


def command(*arguments, **options):
    done = subprocess.run([str(a) for a in arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=False, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(str(a) for a in arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def timed(action, *arguments):
    start = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - start


def is_mounted(path):
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return any(line.split()[4] == str(path) for line in table)


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3")


def make_durable(path):
    """What a program can do to have everything on the disk: fsync of the directory, then syncfs."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):  # a server may not know fsync of directories
        os.fsync(fd)
    os.close(fd)
    command("sync", "-f", path)


def available_bytes():
    """Of memory, without taking it from anybody."""
    for line in pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo: no MemAvailable")


class WarmMemory:
    """Keeps this machine's free memory in pieces that a hypervisor does not take back.

    A guest that reports free pages pays some microseconds for each page that it uses again, which would
    hit whoever allocates page cache. One page per MiB is kept, so that no large piece is ever free.
    """

    def __init__(self, size):
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.madvise(mmap.MADV_NOHUGEPAGE)
        for offset in range(0, size, 4096):
            self.map[offset] = 1
        for offset in range(0, size, MIB):
            self.map.madvise(mmap.MADV_DONTNEED, offset + 4096, MIB - 4096)


class Disk:
    """The loop device that all peers use in turn."""

    FREE_SECONDS_MAX = 60

    def __init__(self, directory, size):
        self.file = pathlib.Path(directory) / "disk.img"
        chunk = random.Random(1).randbytes(4 * MIB)
        with open(self.file, "wb") as file:
            for _ in range(size // len(chunk)):
                file.write(chunk)
        self.device = command("losetup", "--find", "--show", "--direct-io=on", self.file).strip()

    def wait_until_free(self):
        """An unmounted filesystem lives on while somebody else has a view of all mounts (unshare, containers)."""
        deadline = time.monotonic() + self.FREE_SECONDS_MAX
        while True:
            try:
                os.close(os.open(self.device, os.O_RDWR | os.O_EXCL))
                return
            except OSError as problem:
                if problem.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def dispose(self):
        subprocess.run(["losetup", "-d", self.device], check=False)
        self.file.unlink(missing_ok=True)


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def describe():
    return {"kernel": platform.release(), "processor": processor(), "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB,
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def parse_size(text):
    units = {"K": 1 << 10, "M": MIB, "G": GIB}
    try:
        return int(text[:-1]) * units[text[-1].upper()] if text[-1].upper() in units else int(text)
    except (ValueError, IndexError):
        die(f"--size {text}: expected a size such as 8G")
