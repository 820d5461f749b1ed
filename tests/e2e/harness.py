"""What the mounted tests share: an image, its server, and the ways to end it.

A test is a script whose `test(space)` is given to run(). Its exit status is 0, 1 (with the server's log
printed) or 77 for a skip, which ctest knows. Nothing is left behind: mounts, servers and files go when
the script ends, however it ends. Not for: looking inside a volume; `cofs fsck` does that.

Environment: COFS (the command; default build/release/bin/cofs), COFS_TEST_DIR (where images are kept;
default /tmp), COFS_SEED (of all random choices; printed on failure).
"""
import contextlib
import ctypes
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXIT_SKIPPED = 77
SERVER_START_SECONDS_MAX = 60
COMMAND_SECONDS_MAX = 300
IO_URING_SWITCH = pathlib.Path("/sys/module/fuse/parameters/enable_uring")


class Failure(Exception):
    """The filesystem did not do what it must."""


def skip(reason):
    print(f"SKIPPED: {reason}", flush=True)
    sys.exit(EXIT_SKIPPED)


def check(condition, message):
    if not condition:
        raise Failure(message)


def note(text):
    print(text, flush=True)


def number_from(name, default):
    """An integer from the environment."""
    return int(os.environ.get(name, default))


def command():
    return os.environ.get("COFS", str(ROOT / "build/release/bin/cofs"))


def require_programs(*names):
    for name in names:
        if shutil.which(name) is None:
            skip(f"{name} is not installed (tools/install)")


def run_command(*arguments, expect=0, **options):
    """Runs a program to its end and returns what it printed. expect=None: any exit status."""
    options.setdefault("timeout", COMMAND_SECONDS_MAX)
    done = subprocess.run([str(a) for a in arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", **options)
    if expect is not None and done.returncode != expect:
        raise Failure(f"{' '.join(str(a) for a in arguments)}: exit status {done.returncode}, "
                      f"not {expect}\n{done.stdout[-4000:]}")
    return done.stdout


def mount_type(path):
    """The type of the filesystem mounted on exactly this path; None if there is none."""
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            if fields[4] == str(path):
                found = fields[fields.index("-") + 1]
    return found


def fsync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def drop_caches():
    os.sync()
    with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3")


@contextlib.contextmanager
def io_uring_allowed():
    """The kernel's switch for the transport is on, where there is one; it concerns only mounts that ask for the transport."""
    was = IO_URING_SWITCH.read_text().strip() if IO_URING_SWITCH.exists() else None
    with contextlib.suppress(OSError):  # not root
        if was == "N":
            IO_URING_SWITCH.write_text("Y")
    try:
        yield
    finally:
        if was == "N":
            with contextlib.suppress(OSError):
                IO_URING_SWITCH.write_text("N")


@contextlib.contextmanager
def loop_device(image):
    """The path of a loop device over the image, which goes with the block."""
    require_programs("losetup")
    device = run_command("losetup", "--find", "--show", image).strip()
    try:
        yield pathlib.Path(device)
    finally:
        run_command("losetup", "--detach", device)


class Volume:
    """One image with a cofs volume, and the server of its mount while there is one."""

    def __init__(self, directory, size="1G", options="", name="volume", mkfs=()):
        self.image = pathlib.Path(directory) / f"{name}.img"
        self.mount_point = pathlib.Path(directory) / f"{name}.mnt"
        self.log = pathlib.Path(directory) / f"{name}.log"
        self.options = options
        self.server = None
        self.mount_point.mkdir()
        run_command(command(), "mkfs", "--quiet", "--size", size, *mkfs, self.image)

    def mount(self):
        """Starts a server that stays our child, so that it can be killed; returns once it serves."""
        check(self.server is None, "the volume is mounted already")
        arguments = [command(), "mount", str(self.image), str(self.mount_point), "--foreground"]
        if self.options:
            arguments += ["-o", self.options]
        with open(self.log, "ab") as log:
            log.write(f"--- mount at {time.time():.3f}\n".encode())
            log.flush()
            self.server = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                           start_new_session=True, preexec_fn=die_with_parent)
        deadline = time.monotonic() + SERVER_START_SECONDS_MAX
        while True:
            status = self.server.poll()
            if status is not None:
                self.server = None
                raise Failure(f"the server ended with status {status} before the mount was ready")
            # A server that is unmounted before it says that it is ready calls that a failure.
            if mount_type(self.mount_point) is not None and self.says_ready():
                os.statvfs(self.mount_point)
                return self
            if time.monotonic() > deadline:
                raise Failure("the mount was not ready in time")
            time.sleep(0.01)

    def says_ready(self):
        """Whether the last server that was started has said so in the log."""
        return "mounted on" in self.log.read_text(errors="replace").rpartition("--- mount at")[2]

    def umount(self):
        """A clean unmount; the server must end by itself, without an error."""
        run_command(command(), "umount", self.mount_point)
        status = self.server.wait(timeout=COMMAND_SECONDS_MAX)
        self.server = None
        check(status == 0, f"the server ended with status {status}")
        check(mount_type(self.mount_point) is None, "still mounted after cofs umount")

    def remount(self):
        self.umount()
        self.mount()

    def kill(self):
        """kill -9 of the server, and nothing else; the dead mount stays."""
        check(self.server.poll() is None, f"the server had ended by itself: {self.server.returncode}")
        self.server.kill()
        self.server.wait()
        self.server = None

    def clear_dead_mount(self):
        run_command(command(), "umount", self.mount_point)
        check(mount_type(self.mount_point) is None, "cofs umount left the dead mount")

    def fsck(self, data=True):
        arguments = ["--data"] if data else []
        run_command(command(), "fsck", *arguments, self.image)

    def statistics(self):
        return json.loads(run_command(command(), "stat", "--json", self.mount_point))

    def path(self, *parts):
        return self.mount_point.joinpath(*parts)

    def dispose(self):
        if self.server is not None and self.server.poll() is None:
            self.server.kill()
            self.server.wait()
        while mount_type(self.mount_point) is not None:
            subprocess.run(["umount", "-l", str(self.mount_point)], check=True)


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Space:
    """A test's own directory, volumes, child processes and random numbers."""

    def __init__(self, directory, seed):
        self.directory = pathlib.Path(directory)
        self.seed = seed
        self.random = random.Random(seed)
        self.volumes = []
        self.children = []

    def volume(self, **arguments):
        volume = Volume(self.directory, **arguments)
        self.volumes.append(volume)
        return volume

    def start_self(self, *arguments):
        """Starts this script again as a helper program; see helper_arguments()."""
        child = subprocess.Popen([sys.executable, sys.argv[0], "--helper", *[str(a) for a in arguments]],
                                 preexec_fn=die_with_parent)
        self.children.append(child)
        return child

    def dispose(self):
        for volume in self.volumes:
            volume.dispose()
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()


def helper_arguments():
    """The arguments of start_self() when this process is the helper; else None."""
    return sys.argv[2:] if sys.argv[1:2] == ["--helper"] else None


def seconds_since(start):
    return time.monotonic() - start


def raise_exit(*_):
    raise SystemExit(1)


def run(test):
    """Runs test(space) with cleanup, and exits."""
    if not os.access(command(), os.X_OK):
        print(f"FAILED: no cofs command at {command()} (set COFS)")
        sys.exit(1)
    if not os.path.exists("/dev/fuse"):
        skip("this machine has no /dev/fuse")
    signal.signal(signal.SIGTERM, raise_exit)
    seed = number_from("COFS_SEED", int.from_bytes(os.urandom(4), "little"))
    start = time.monotonic()
    status = 0
    with tempfile.TemporaryDirectory(prefix="cofs-e2e-", dir=os.environ.get("COFS_TEST_DIR", "/tmp"),
                                     ignore_cleanup_errors=True) as directory:
        space = Space(directory, seed)
        try:
            test(space)
        except (Failure, OSError, subprocess.SubprocessError) as problem:
            status = 1
            print(f"FAILED (COFS_SEED={seed}): {type(problem).__name__}: {problem}")
            for volume in space.volumes:
                print(f"--- last lines of the server's log, {volume.log.name}")
                if volume.log.exists():
                    print(volume.log.read_text(errors="replace")[-3000:])
        finally:
            space.dispose()
    if status == 0:
        note(f"OK in {seconds_since(start):.1f} s (COFS_SEED={seed})")
    sys.exit(status)
