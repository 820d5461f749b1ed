"""fsx and fsstress of xfstests on cofs: under garbage collection, and with the server killed now and then.

Each round works on one volume, that garbage collection never leaves alone: fsx, twice, on a file of its own (through
the page cache with mappings; with O_DIRECT), copying, punching, zeroing and preallocating, and fsstress beside them.
A round ends in a clean unmount or, every second one, in kill -9 of the server. Afterwards `cofs fsck --data` must
find nothing; fsx itself compares all it reads.
"""
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time

VOLUME_BYTES = 8 << 30  # fsstress does not fill it within a round: fsx takes a full volume for an error
ROUND_SECONDS = (10, 25)
END_SECONDS = 120  # for what must end by itself


class StressFailed(Exception):
    """Something was wrong; the text says what."""


class Round:
    def __init__(self, cofs, xfstests, image, mount, log, seed):
        self.cofs = cofs
        self.xfstests = xfstests
        self.image = image
        self.mount_point = mount
        self.log = log
        self.random = random.Random(seed)
        self.children = []

    def start(self, *command):
        self.children.append(subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                              stdout=self.log, stderr=subprocess.STDOUT,
                                              start_new_session=True, cwd=self.mount_point))

    def run(self, is_killed):
        options = self.random.choice(("gc=aggressive", "gc=aggressive,writeback", "gc=aggressive,clone=share"))
        server = subprocess.Popen([self.cofs, "mount", "--foreground", str(self.image), str(self.mount_point),
                                   "-o", f"allow_other,{options}"], stdout=self.log, stderr=subprocess.STDOUT)
        self.wait_for_mount(server)
        try:
            self.start_programs()
            self.watch(self.random.uniform(*ROUND_SECONDS), server)
            if is_killed:
                server.send_signal(signal.SIGKILL)
                server.wait()
        finally:
            self.end_programs()
        subprocess.run([self.cofs, "umount", self.mount_point], check=not is_killed, stdout=self.log,
                       stderr=subprocess.STDOUT, timeout=END_SECONDS)
        if not is_killed and server.wait(END_SECONDS) != 0:
            raise StressFailed(f"the server ended with {server.returncode} ({options})")
        checked = subprocess.run([self.cofs, "fsck", "--data", self.image], check=False, text=True,
                                 capture_output=True)
        if checked.returncode != 0:
            raise StressFailed(f"fsck after {'a kill' if is_killed else 'an unmount'} ({options}): {checked.stdout}")
        return options

    def wait_for_mount(self, server):
        deadline = time.monotonic() + END_SECONDS
        while not os.path.ismount(self.mount_point):
            if server.poll() is not None or time.monotonic() > deadline:
                raise StressFailed("the volume could not be mounted")
            time.sleep(0.02)

    def start_programs(self):
        seed = self.random.randrange(1, 1 << 30)
        fsx = self.xfstests / "ltp/fsx"
        self.start(fsx, "-q", "-S", seed, "-l", 8 << 20, "-N", 100_000_000, "fsx-cached")
        self.start(fsx, "-q", "-S", seed + 1, "-l", 8 << 20, "-N", 100_000_000, "-Z", "-R", "-W", "-r", 4096, "-w", 4096,
                   "-t", 4096, "fsx-direct")
        directory = self.mount_point / f"stress-{seed}"
        for old in self.mount_point.glob("stress-*"):
            subprocess.run(["chattr", "-R", "-f", "-i", "-a", old], check=False, capture_output=True)
            shutil.rmtree(old)
        directory.mkdir()
        self.start(self.xfstests / "ltp/fsstress", "-d", directory, "-p", 3, "-n", 100_000_000, "-s", seed)

    def watch(self, seconds, server):
        """The programs run without end: one that ends has found something."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if server.poll() is not None:
                raise StressFailed(f"the server ended with {server.returncode}")
            for child in self.children[:2]:
                if child.poll() is not None:
                    raise StressFailed(f"fsx ended with {child.returncode}: {' '.join(child.args)}")

    def end_programs(self):
        for child in self.children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        for child in self.children:
            child.wait(END_SECONDS)
        deadline = time.monotonic() + END_SECONDS
        while any(is_group_alive(child.pid) for child in self.children):  # fsstress has children of its own
            if time.monotonic() > deadline:
                raise StressFailed("a program that was killed does not end")
            time.sleep(0.1)


def is_group_alive(group):
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False


def run_stress(cofs, xfstests, directory, results, minutes, seed):
    """Rounds until the time is up. Returns a line that tells what was done. Raises StressFailed."""
    rounds = kills = 0
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="cofs-stress-", dir=directory) as made, \
            open(results / "stress.log", "wb") as log:
        image = pathlib.Path(made) / "volume.img"
        mount = pathlib.Path(made) / "mount"
        mount.mkdir()
        subprocess.run([cofs, "mkfs", "--quiet", "--size", str(VOLUME_BYTES), image], check=True)
        while time.monotonic() < end:
            is_killed = rounds % 2 == 1
            try:
                options = Round(cofs, xfstests, image, mount, log, seed + rounds).run(is_killed)
            except (StressFailed, OSError, subprocess.SubprocessError) as problem:
                subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
                image.rename(results / "stress.img")
                raise StressFailed(f"round {rounds} of seed {seed}: {problem} (the volume: {results}/stress.img)") \
                    from problem
            rounds += 1
            kills += is_killed
            print(f"[stress] round {rounds}: {options}, {'killed' if is_killed else 'unmounted'}: clean", flush=True)
    return f"{rounds} rounds, {kills} kills of the server, nothing wrong (seed {seed})"
