"""One run of QEMU with Debian's kernel: starting it, watching its job, cutting its power.

Without KVM: the processor is emulated, so times in a guest say little of real ones.
"""
import ctypes
import os
import random
import signal
import subprocess
import time

import disks as lab_disks

QEMU = "qemu-system-x86_64"
MEMORY_MIB = 2048
# With more, each request to the filesystem wakes another processor, which costs milliseconds under emulation.
PROCESSORS = 1
# Not "max": what that adds is slow under emulation (byte-wise string instructions, five-level page tables).
PROCESSOR = "qemu64"
KERNEL_ARGUMENTS = "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off tsc=reliable clocksource=tsc audit=0"
BOOT_SECONDS_MAX = 120
LOG_TAIL_BYTES = 4000
POLL_SECONDS = 0.05


class Failure(Exception):
    """A job failed, hung, or its guest did."""


def tail(path):
    """The last lines of a log that may not be there."""
    text = path.read_text(errors="replace")[-LOG_TAIL_BYTES:] if path.exists() else ""
    return text[text.find("\n") + 1:] if len(text) == LOG_TAIL_BYTES else text


def prepare_process():
    """In QEMU's process: it dies with its parent, and all its threads share one CPU.

    With a single guest processor the emulation leaves out the guest's memory barriers. Its NVMe driver needs one between
    its shadow doorbell and its look at where the controller wants to be woken, for the controller runs in another thread.
    On another CPU that misses a doorbell, and the queue stands still until its commands time out: 40 measurements of a
    disk in a row hung in 5 of 5 runs, before the fifth; on one CPU in none of 2, and as fast.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})


class Guest:
    """One run of QEMU. It ends by itself when its job has ended; kill() ends it before."""

    def __init__(self, lab, number):
        self.lab = lab
        self.console = lab.directory / f"console-{number}"
        self.log = lab.directory / f"qemu-{number}"
        self.out = lab.share / "out"
        self.printed = 0
        self.started = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.arguments(), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, preexec_fn=prepare_process)

    def arguments(self):
        lab = self.lab
        return [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc",
                "-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", str(PROCESSORS), "-m", f"{MEMORY_MIB}M",
                "-no-reboot", "-serial", f"file:{self.console}",
                "-kernel", str(lab.kernel.image), "-initrd", str(lab.initramfs), "-append", KERNEL_ARGUMENTS,
                "-virtfs", "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap",
                "-virtfs", f"local,path={lab.share},mount_tag=share,security_model=none,multidevs=remap",
                "-device", "virtio-rng-pci",
                *lab_disks.qemu_arguments(lab.disks, lab.images)]

    def show_output(self):
        """Prints what the job printed since the last call, in whole lines."""
        if not self.out.exists():
            return
        with open(self.out, "rb") as file:
            file.seek(self.printed)
            fresh = file.read()
        fresh = fresh[:fresh.rfind(b"\n") + 1]
        self.printed += len(fresh)
        for line in fresh.decode(errors="replace").splitlines():
            print(f"  | {line}", flush=True)

    def wait_until(self, condition, seconds, what):
        """Polls condition() until it holds or the guest has ended. Errors: Failure after the time."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            self.show_output()
            if condition() or ended:
                return
            if time.monotonic() > deadline:
                self.fail(f"no {what} within {seconds} s")
            time.sleep(POLL_SECONDS)

    def wait_for_file(self, name, seconds):
        """Until the job has made this file in the share."""
        path = self.lab.share / name
        self.wait_until(path.exists, seconds, f"file {name}")
        if not path.exists():
            self.fail(f"the guest ended without the file {name}")

    def wait(self, seconds):
        """The job's exit status, once the guest has switched off."""
        self.wait_until(self.out.exists, BOOT_SECONDS_MAX, "start of the job")
        self.wait_until(lambda: False, seconds, "end of the job")
        status = self.lab.share / "status"
        if not status.exists():
            self.fail("the guest ended without a result")
        return int(status.read_text())

    def fail(self, problem):
        self.kill()
        raise Failure(f"{problem} (QEMU's exit status: {self.process.returncode})\n--- QEMU\n{tail(self.log)}\n"
                      f"--- the guest's console, its last lines\n{tail(self.console)}")

    def kill(self):
        """A power cut: what the emulated devices have not written is lost with QEMU."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self.show_output()

    def seconds(self):
        return time.monotonic() - self.started
