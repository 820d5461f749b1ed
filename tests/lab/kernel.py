"""The kernel that the lab boots: Debian's own package, unpacked into a cache and never installed.

The cache is ${XDG_CACHE_HOME:-~/.cache}/cofs-lab, one directory for each version of the package; what is
there is not fetched again. Without a registry the newest cached version serves.
"""
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

META_PACKAGE = "linux-image-amd64"
DOWNLOAD_SECONDS_MAX = 300
ADMIN_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


class Unavailable(Exception):
    """The lab cannot be had on this machine; the text says why."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    release: str              # "6.1.0-56-amd64"
    image: pathlib.Path       # the bzImage
    root: pathlib.Path        # holds lib/modules/RELEASE

    def insmod_order(self, *names):
        """The files to insert for these modules, dependencies first, each once."""
        files = []
        for name in names:
            listing = run("modprobe", "-d", self.root, "-S", self.release, "--show-depends", name)
            for line in listing.splitlines():
                words = line.split()
                if words[0] == "insmod" and words[1] not in files:
                    files.append(words[1])
        return [pathlib.Path(file) for file in files]


def prepare():
    """The cached kernel of the newest package; fetched and unpacked first where it is not there."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"the lab's kernel is for x86_64, not for {platform.machine()}")
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "cofs-lab"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            try:
                directory = fetch(cache, newest_package())
            except Unavailable:  # the lists may name a version that the registry has no more
                update_package_lists()
                directory = fetch(cache, candidate())
        except Unavailable:
            cached = [entry for entry in cache.iterdir() if entry.name.startswith("linux-image-")]
            if not cached:
                raise
            directory = max(cached, key=lambda entry: entry.stat().st_mtime)
    return kernel_in(directory)


def fetch(cache, wanted):
    """The directory of this package in the cache, unpacked into it if it was not there."""
    directory = cache / "_".join(wanted).replace(":", "%3a")
    if not directory.is_dir():
        unpack_package(wanted, directory)
    return directory


def kernel_in(directory):
    images = list(directory.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise Unavailable(f"{directory} holds {len(images)} kernels, not one; remove it")
    return Kernel(images[0].name.removeprefix("vmlinuz-"), images[0], directory)


def newest_package():
    """Name and version of the package that the meta package stands for."""
    with contextlib.suppress(Unavailable):
        return candidate()
    update_package_lists()
    return candidate()


def candidate():
    for line in run("apt-cache", "depends", META_PACKAGE).splitlines():
        words = line.split()
        if words[:1] == ["Depends:"] and words[1].startswith("linux-image-"):
            for field in run("apt-cache", "show", "--no-all-versions", words[1]).splitlines():
                if field.startswith("Version: "):
                    return words[1], field.split()[1]
    raise Unavailable(f"apt knows no {META_PACKAGE}")


def unpack_package(wanted, directory):
    with tempfile.TemporaryDirectory(prefix="unpacking-", dir=directory.parent) as scratch:
        run("apt-get", "-q", "download", "=".join(wanted), cwd=scratch)
        packages = list(pathlib.Path(scratch).glob("*.deb"))
        if len(packages) != 1:
            raise Unavailable(f"apt-get download {wanted[0]} left {len(packages)} packages")
        root = pathlib.Path(scratch) / "root"
        run("dpkg", "-x", packages[0], root)
        run("depmod", "-b", root, kernel_in(root).release)
        root.rename(directory)


def update_package_lists():
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    run(*sudo, "apt-get", "-q", "update")


def run(*arguments, **options):
    """A program's output. Errors: Unavailable with the program's last line."""
    program = shutil.which(str(arguments[0]), path=ADMIN_PATH)
    if program is None:
        raise Unavailable(f"{arguments[0]} is not installed (tools/install)")
    try:
        done = subprocess.run([program, *[str(a) for a in arguments[1:]]], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace",
                              timeout=DOWNLOAD_SECONDS_MAX, **options)
    except subprocess.TimeoutExpired as problem:
        raise Unavailable(f"{arguments[0]} took longer than {DOWNLOAD_SECONDS_MAX} s") from problem
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        raise Unavailable(f"{' '.join(str(a) for a in arguments)}: {lines[-1]}")
    return done.stdout
