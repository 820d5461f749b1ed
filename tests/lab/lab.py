"""The device lab: boots Debian's kernel under software emulation with disks that execute copy commands,
runs jobs there, and brings their results back.

A job is a Python script that runs as root in the guest, at its own path: the guest sees this machine's
root read-only, with a layer in memory on top. What it prints appears here line by line; its exit status is
the result. A test is a script whose `test(lab)` is given to run(). Its exit status is 0, 1 or 77 for a skip:
only where the lab cannot be had, with the reason, and never where COFS_LAB_REQUIRED is set.

Environment: COFS (the command; default build/release/bin/cofs), COFS_TEST_DIR (where disk images are kept;
default /tmp), COFS_SEED (of all random choices), COFS_LAB_REQUIRED, COFS_LAB_ENGINES (the copy engines
that the command has; default "nvme xcopy"), COFS_LAB_REPORT (a file to which the jobs' answers are added, as
lines of JSON: capabilities, counters and times for each device).
"""
import json
import os
import pathlib
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time

import disks as lab_disks
import initramfs
import kernel as lab_kernel
from machine import QEMU, Failure, Guest, tail

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXIT_SKIPPED = 77


def engines():
    """Those that the command has; devices that have one of these must be served by it."""
    return os.environ.get("COFS_LAB_ENGINES", "nvme xcopy").split()


def command():
    return os.environ.get("COFS", str(ROOT / "build/release/bin/cofs"))


class Lab:
    """Disks that stay from boot to boot, and the share by which jobs answer."""

    def __init__(self, directory, seed):
        self.directory = pathlib.Path(directory)
        self.share = self.directory / "share"
        self.share.mkdir()
        self.random = random.Random(seed)
        self.seed = seed
        self.kernel = lab_kernel.prepare()
        self.initramfs = self.directory / "initramfs"
        self.initramfs.write_bytes(initramfs.build(self.kernel))
        self.disks = []
        self.images = {}
        self.guests = []

    def set_disks(self, *disks):
        """The disks of the guests to come; images are made where there is none of that name yet."""
        self.disks = list(disks)
        for disk in disks:
            image = self.directory / f"{disk.name}.img"
            self.images[disk.name] = image
            if not image.exists():
                with open(image, "wb") as file:
                    file.truncate(disk.bytes)

    def make_reference(self, size):
        """Random bytes for the guest, as the file `reference` in the share: no two blocks are alike."""
        with open(self.share / "reference", "wb") as file:
            for offset in range(0, size, lab_disks.MIB):
                file.write(self.random.randbytes(min(lab_disks.MIB, size - offset)))

    def write_job(self, script, **arguments):
        """Leaves the job, a script of the guest directory, for the next boot."""
        for name in ("out", "status", "dmesg", "answer.json"):
            (self.share / name).unlink(missing_ok=True)
        job = {"seed": self.seed, "disks": lab_disks.description(self.disks), "arguments": arguments}
        (self.share / "job.json").write_text(json.dumps(job))
        environment = {"COFS": os.path.realpath(command()), "PYTHONDONTWRITEBYTECODE": "1",
                       "LAB_MODULES": self.kernel.root, "HOME": "/root", "LC_ALL": "C.UTF-8"}
        words = ["exec", "env", *[f"{name}={value}" for name, value in environment.items()],
                 sys.executable, "-u", HERE / "guest" / script]
        (self.share / "run").write_text(shlex.join(str(word) for word in words) + "\n")

    def boot(self, script, **arguments):
        """Starts a guest with this job of the guest directory; `arguments` must go through JSON."""
        self.write_job(script, **arguments)
        guest = Guest(self, len(self.guests))
        self.guests.append(guest)
        return guest

    def finish(self, guest, script, seconds):
        """Waits for the end of the guest's job, which must be a success; returns what it answered."""
        status = guest.wait(seconds)
        print(f"guest: {guest.seconds():.1f} s for {script}", flush=True)
        if report := os.environ.get("COFS_LAB_REPORT"):
            with open(report, "a", encoding="utf-8") as file:
                file.write(json.dumps({"job": script, "answer": self.answer()}) + "\n")
        if status != 0:
            raise Failure(f"{script} ended with status {status}\n--- the guest kernel's log, its last lines\n"
                          f"{tail(self.share / 'dmesg')}")
        return self.answer()

    def run(self, script, seconds, **arguments):
        """Boots, and runs the job to its end within `seconds`."""
        return self.finish(self.boot(script, **arguments), script, seconds)

    def answer(self):
        path = self.share / "answer.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def dispose(self):
        for guest in self.guests:
            guest.kill()


def skip(reason):
    if os.environ.get("COFS_LAB_REQUIRED"):
        print(f"FAILED: the lab is required here (COFS_LAB_REQUIRED), but: {reason}", flush=True)
        sys.exit(1)
    print(f"SKIPPED: {reason}", flush=True)
    sys.exit(EXIT_SKIPPED)


def raise_exit(*_):
    raise SystemExit(1)


def run(test):
    """Runs test(lab) with cleanup, and exits."""
    if not os.access(command(), os.X_OK):
        print(f"FAILED: no cofs command at {command()} (set COFS)")
        sys.exit(1)
    if shutil.which(QEMU) is None:
        skip(f"{QEMU} is not installed (tools/install)")
    signal.signal(signal.SIGTERM, raise_exit)
    seed = int(os.environ.get("COFS_SEED", int.from_bytes(os.urandom(4), "little")))
    start = time.monotonic()
    status = 0
    with tempfile.TemporaryDirectory(prefix="cofs-lab-", dir=os.environ.get("COFS_TEST_DIR", "/tmp"),
                                     ignore_cleanup_errors=True) as directory:
        lab = None
        try:
            lab = Lab(directory, seed)
            test(lab)
        except lab_kernel.Unavailable as problem:
            skip(str(problem))
        except (Failure, OSError, ValueError) as problem:
            status = 1
            print(f"FAILED (COFS_SEED={seed}): {type(problem).__name__}: {problem}")
        finally:
            if lab is not None:
                lab.dispose()
    if status == 0:
        print(f"OK in {time.monotonic() - start:.1f} s (COFS_SEED={seed})", flush=True)
    sys.exit(status)
