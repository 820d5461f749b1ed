"""Rows about copies: by cp, by sharing, and on an image that xfs holds.

`IMAGE_ROWS` are not measured on the loop device as such: measure_image() makes an xfs on it, an image of cofs there
with clone=device, and compares what a copy within the volume takes with FICLONERANGE on the same image.
"""
import contextlib
import fcntl
import json
import os
import pathlib
import statistics
import struct

from machine import MIB, command, is_mounted, timed
from peers import Cofs
from row import Row, each
from work import NotApplicable

REPEATS = 5
IMAGE_FACTOR = REPEATS + 4  # no copy takes the place of an earlier one; most of it are holes
CHUNK_BYTES = 4 * MIB  # of data, at most, between two headers in a segment
FRAMING_BYTES = 16384  # of headers; about
FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
SHARE_ATTRIBUTE = "user.cofs.clone"
REFLINKS = ("xfs", "btrfs")


def write_whole(path, size):
    """One file, front to back, durable."""
    piece = os.urandom(MIB)
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(piece)
        os.fsync(file.fileno())


def make_source(work):
    path = work.directory / "source"
    if not path.exists():
        write_whole(path, work.big_bytes)
        work.make_durable()


def copy_file(work):
    target = work.directory / "source.copy"

    def copy():
        command("cp", f"--reflink={work.peer.copies}", work.directory / "source", target)
        work.make_durable()
    seconds = timed(copy)
    if os.stat(target).st_size != work.counted(work.big_bytes):
        raise RuntimeError("the copy is not whole")
    target.unlink()
    return seconds


# --- Sharing ---

def clone_directory(work):
    directory = work.directory / "clones"
    if not directory.exists():
        directory.mkdir()
        if isinstance(work.peer, Cofs):
            os.setxattr(directory, SHARE_ATTRIBUTE, b"share")
    return directory


def can_share(work):
    if not isinstance(work.peer, Cofs) and work.peer.name not in REFLINKS:
        raise NotApplicable("it cannot share blocks")


@contextlib.contextmanager
def opened(source, target):
    source_fd = os.open(source, os.O_RDONLY)
    target_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        yield source_fd, target_fd
    finally:
        os.close(source_fd)
        os.close(target_fd)


def copy_range(source, target, length):
    done = 0
    while done < length:
        count = os.copy_file_range(source, target, length - done, done, done)
        if count == 0:
            raise RuntimeError(f"a copy ended at {done} of {length}")
        done += count


def share(work, target):
    """Seconds in the calls, and of the server's processor time."""
    with opened(work.directory / "source", target) as (source_fd, target_fd):
        before = work.peer.cpu_seconds()
        if work.peer.kernel:
            seconds = timed(fcntl.ioctl, target_fd, FICLONE, source_fd)
        else:
            seconds = timed(copy_range, source_fd, target_fd, work.big_bytes)
        server = work.peer.cpu_seconds() - before
    target.unlink()
    return seconds, server


def clone_by_cp(work):
    can_share(work)
    target = clone_directory(work) / "cp"
    mode = "always" if work.peer.kernel else "auto"
    found = []
    for _ in range(REPEATS):
        found.append(timed(command, "cp", f"--reflink={mode}", work.directory / "source", target))
        target.unlink()
    return statistics.median(found) * 1000


def clone_by_call(work):
    can_share(work)
    target = clone_directory(work) / "call"
    return statistics.median(share(work, target)[0] for _ in range(REPEATS)) * 1000


def clone_in_server(work):
    can_share(work)
    if work.peer.kernel:
        raise NotApplicable("it has no server")
    target = clone_directory(work) / "server"
    return statistics.median(share(work, target)[1] for _ in range(REPEATS)) * 1000


# --- On an image that xfs holds ---

IMAGE_ROWS = [
    Row("image copy, call", "ms", None, each(0.95, "xfs"), transport=False,
        note="clone=device, the volume an image on xfs: copy_file_range alone; under xfs: FICLONERANGE on the image by itself"),
    Row("image copy + fsync", "ms", None, each(0.95, "xfs"), transport=False, note="the same, and the fsync after it"),
    Row("image copy, in pieces", "ms", None,
        note="the call again; under xfs: as many FICLONERANGE as the volume's segments and chunks ask for"),
]


def repeated(path_of, copy):
    """Medians of the calls alone and with their fsync, in milliseconds. Both are given the number."""
    calls, whole = [], []
    for number in range(REPEATS):
        fd = os.open(path_of(number), os.O_RDWR)
        try:
            seconds = timed(copy, fd, number)
            calls.append(seconds * 1000)
            whole.append((seconds + timed(os.fsync, fd)) * 1000)
        finally:
            os.close(fd)
    return {"image copy, call": statistics.median(calls), "image copy + fsync": statistics.median(whole)}


def copy_within_volume(peer, size):
    source = peer.mount_point / "source"
    write_whole(source, size)
    before = json.loads(command(peer.program, "stat", "--json", peer.mount_point))["copy"]
    source_fd = os.open(source, os.O_RDONLY)

    def target(number):
        path = peer.mount_point / f"target{number}"
        path.touch()
        return path

    def copy(target_fd, _):
        copy_range(source_fd, target_fd, size)
    try:
        found = repeated(target, copy)
    finally:
        os.close(source_fd)
    after = json.loads(command(peer.program, "stat", "--json", peer.mount_point))["copy"]
    by_file = after["hostfile_bytes"] - before["hostfile_bytes"]
    if by_file < REPEATS * size * 0.99:
        raise RuntimeError(f"only {by_file / MIB:.0f} MiB of {REPEATS * size / MIB:.0f} were cloned within the image")
    return found


def clone_of_image(image, size, piece):
    """FICLONERANGE of as many bytes of the image, to places behind its end that were never written.

    By one call for each `piece` bytes, less what frames them in a volume.
    """
    end = -(-os.stat(image).st_size // MIB) * MIB
    framing = FRAMING_BYTES if piece < size else 0

    def clone(fd, number):
        target = end + number * size
        for at in range(0, size, piece):
            fcntl.ioctl(fd, FICLONERANGE, struct.pack("<qQQQ", fd, at, piece - framing, target + at))
    return repeated(lambda _: image, clone)


def measure_image(disk, directory, program, scale):
    """{row: {"cofs": value, "xfs": value}}"""
    size = max(8, int(1024 * scale)) * MIB
    holder = pathlib.Path(directory) / "holder"
    mount_point = pathlib.Path(directory) / "image.mnt"
    for path in (holder, mount_point):
        path.mkdir(exist_ok=True)
    disk.wait_until_free()
    command("mkfs.xfs", "-q", "-f", "-K", disk.device)
    command("mount", "-o", "nodiscard", disk.device, holder)
    peer = Cofs("cofs", program, ["clone=device"])
    peer.mount_point, peer.device = mount_point, holder / "volume.img"
    try:
        command(program, "mkfs", "--quiet", "--size", max(IMAGE_FACTOR * size, 256 * MIB), peer.device)
        peer.start()
        ours = copy_within_volume(peer, size)
        segment = json.loads(command(program, "stat", "--json", mount_point))["volume"]["segment_bytes"]
        peer.stop()
        alone = clone_of_image(peer.device, size, size)
        pieces = clone_of_image(peer.device, size, min(segment, CHUNK_BYTES))
    finally:
        peer.dispose()
        if is_mounted(holder):
            command("umount", holder)
    found = {name: {"cofs": ours[name], "xfs": alone[name]} for name in ours}
    found["image copy, in pieces"] = {"cofs": ours["image copy, call"], "xfs": pieces["image copy, call"]}
    return found
