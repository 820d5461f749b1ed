"""The filesystems that are compared: how each is made, mounted, told to make all durable, and ended.

A peer with a server has it as our child, so that its processor time, its memory and its end can be seen.
"""
import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time

from machine import MIB, ROOT, command, is_mounted, make_durable, timed

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 300
DESCRIPTORS_WANTED = 1 << 20
DESCRIPTORS_SPARE = 1_000  # for directories and what else a server opens


class Peer:
    """A filesystem in user space. `kernel` peers have no server; see KernelPeer."""

    kernel = False
    program = ""
    copies = "auto"        # cp --reflink=…, as people use it
    makes_format = True    # what is on the device is this peer's own
    transport_alone = False  # it keeps nothing: what it reaches is what its transport lets a server reach

    def __init__(self, name):
        self.name = name
        self.server = None
        self.device = None
        self.mount_point = None
        self.files_max = None  # files that it can have open or in memory at once
        self.why_fewer = ""

    def make_command(self, device):
        raise NotImplementedError

    def server_command(self):
        raise NotImplementedError

    def umount_command(self):
        return ["umount", str(self.mount_point)]

    def missing(self):
        return None if shutil.which(self.program) else f"{self.program} is not installed (tools/install --bench)"

    def prepare(self, device, mount_point):
        """Makes the filesystem anew."""
        self.device, self.mount_point = device, pathlib.Path(mount_point)
        command(*self.make_command(device))

    def start(self):
        """Returns once the mount answers."""
        self.server = subprocess.Popen([str(a) for a in self.server_command()], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                       preexec_fn=raise_descriptor_limit)
        deadline = time.monotonic() + START_SECONDS_MAX
        while not is_mounted(self.mount_point):
            if self.server.poll() is not None:
                raise RuntimeError(f"{self.name}: {self.server.stderr.read().decode().strip()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: not mounted in time")
            time.sleep(0.002)
        os.statvfs(self.mount_point)

    def stop(self):
        if self.server is None:
            return
        if is_mounted(self.mount_point):
            subprocess.run(self.umount_command(), check=False)
        try:
            self.server.wait(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()
        self.clear_mount()
        self.server = None

    def kill(self):
        """As a crash of the server; the next start() finds what it left on the device."""
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()
        self.clear_mount()
        self.server = None

    def clear_mount(self):
        while is_mounted(self.mount_point):
            subprocess.run(["umount", "-l", str(self.mount_point)], check=True)

    def dispose(self):
        """After an error, too: nothing is left mounted."""
        self.stop()

    def make_durable(self):
        make_durable(self.mount_point)

    def cpu_seconds(self):
        """Processor time of all the server's threads, by the clock that clock_getcpuclockid(3) names."""
        return time.clock_gettime((~self.server.pid << 3) | 2)

    def forget_peak(self):
        pathlib.Path(f"/proc/{self.server.pid}/clear_refs").write_text("5", encoding="ascii")

    def peak_mib(self):
        """The most that was resident since forget_peak()."""
        for line in pathlib.Path(f"/proc/{self.server.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MIB
        raise RuntimeError(f"{self.name}: the kernel does not tell its peak memory")


def raise_descriptor_limit():
    """As far as this machine lets us: a server that may not only has fewer."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (DESCRIPTORS_WANTED, hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
            return


class Cofs(Peer):
    def __init__(self, name, program, options):
        super().__init__(name)
        self.program = str(program)
        self.options = ",".join(["nodiscard", *options])

    def missing(self):
        return None if os.access(self.program, os.X_OK) else f"no {self.program}: build the release preset"

    def make_command(self, device):
        return [self.program, "mkfs", "--force", "--quiet", "--no-discard", device]

    def server_command(self):
        return [self.program, "mount", self.device, self.mount_point, "--foreground", "-o", self.options]

    def umount_command(self):
        return [self.program, "umount", str(self.mount_point)]


class Nothing(Peer):
    """A server that does nothing (tools/bench/memory_server.cc), mounted on the device as cofs is. What it has ends with it."""

    transport_alone = True
    makes_format = False

    def __init__(self, name, program, words):
        super().__init__(name)
        self.program = str(program)
        self.words = words

    def missing(self):
        return None if os.access(self.program, os.X_OK) else f"no {self.program}: build the release preset"

    def prepare(self, device, mount_point):
        self.device, self.mount_point = device, pathlib.Path(mount_point)

    def server_command(self):
        return [self.program, self.device, self.mount_point, *self.words]


class Fuse2fs(Peer):
    program = "fuse2fs"

    def make_command(self, device):
        return ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", device]

    def server_command(self):
        return ["fuse2fs", self.device, self.mount_point, "-f", "-o", "rw,allow_other"]


class Ntfs3g(Peer):
    program = "ntfs-3g"

    def make_command(self, device):
        return ["mkfs.ntfs", "-q", "-Q", "-F", device]

    def server_command(self):
        return ["ntfs-3g", "-o", "no_detach,big_writes,allow_other", self.device, self.mount_point]


class PassthroughHp(Peer):
    """libfuse's example: all data goes through it to a directory of the kernel's ext4 on the same device.

    It keeps a descriptor open for each inode that the kernel knows. By io_uring it has the library's own queues, not ours.
    """

    program = "passthrough_hp"
    makes_format = False

    def __init__(self, name, words=()):
        super().__init__(name)
        self.options = [argument for word in words for argument in ("-o", word)]
        self.source = None
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE,
                               (resource.getrlimit(resource.RLIMIT_NOFILE)[0], max(hard, DESCRIPTORS_WANTED)))
        except (ValueError, OSError):
            self.files_max = hard - DESCRIPTORS_SPARE
            self.why_fewer = f"a descriptor for each, and the limit of {hard:,} cannot be raised here"

    def missing(self):
        try:
            self.program = pathlib.Path(command(ROOT / "tools/build-libfuse", "--examples").strip()) / "passthrough_hp"
        except RuntimeError as problem:
            return str(problem).split(": ", 1)[1].splitlines()[-1]
        return None

    def make_command(self, device):
        return ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", device]

    def prepare(self, device, mount_point):
        super().prepare(device, mount_point)
        self.source = pathlib.Path(f"{mount_point}.source")
        self.source.mkdir(exist_ok=True)
        command("mount", "-o", "nodiscard", device, self.source)

    def server_command(self):
        return [self.program, "--foreground", "--nopassthrough", *self.options, self.source, self.mount_point]

    def make_durable(self):
        super().make_durable()
        command("sync", "-f", self.source)  # the kernel does not pass on syncfs

    def dispose(self):
        super().dispose()
        if self.source is not None and is_mounted(self.source):
            command("umount", self.source)


class KernelPeer(Peer):
    """A filesystem of the kernel's: the line that nothing in user space is expected to cross."""

    kernel = True
    copies = "never"

    def __init__(self, name):
        super().__init__(name)
        self.program = f"mkfs.{name}"

    def make_command(self, device):
        return {"ext4": ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
                "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
                "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"]}[self.name] + [device]

    def start(self):
        command("mount", "-o", "nodiscard", self.device, self.mount_point)

    def stop(self):
        if self.mount_point is not None and is_mounted(self.mount_point):
            command("umount", self.mount_point)

    def kill(self):
        raise NotImplementedError

    def cpu_seconds(self):
        return 0.0

    def forget_peak(self):
        pass

    def peak_mib(self):
        return 0.0


KINDS = {"fuse2fs": Fuse2fs, "ntfs-3g": Ntfs3g, "ext4": KernelPeer, "xfs": KernelPeer, "btrfs": KernelPeer}


def peer_of(word, cofs_program):
    """`cofs`, `nothing` or `passthrough_hp`, with :OPTION+OPTION or without, or one of KINDS; None if it is neither."""
    kind, _, options = word.partition(":")
    words = [o for o in options.split("+") if o]
    if kind == "cofs":
        return Cofs(word, cofs_program, words)
    if kind == "nothing":
        return Nothing(word, pathlib.Path(cofs_program).with_name("memory_server"), words)
    if kind == "passthrough_hp":
        return PassthroughHp(word, words)
    return KINDS[kind](kind) if kind in KINDS and not options else None


def mount_seconds(peer):
    """Until the mount answers; the peer is stopped, or its server was killed."""
    return timed(peer.start)
