"""The initramfs of the lab's guests: busybox, the few modules that reach the host's root, and guest_init.

Written as a newc cpio archive, uncompressed: it is small, and the guest's processor is slow.
"""
import os
import pathlib
import stat

from kernel import Unavailable

BUSYBOX_PATHS = ("/bin/busybox", "/usr/bin/busybox")
# What stands between the kernel and the host's root over 9p; all else is loaded from there.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
INIT_SCRIPT = pathlib.Path(__file__).resolve().parent / "guest" / "init.sh"


class Archive:
    """A cpio archive in the making."""

    def __init__(self):
        self.content = bytearray()
        self.entries = 0

    def add(self, name, mode, data=b"", device=(0, 0)):
        self.entries += 1
        fields = (self.entries, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        self.content += b"070701" + b"".join(b"%08X" % field for field in fields)
        self.content += name.encode() + b"\0"
        self.pad()
        self.content += data
        self.pad()

    def pad(self):
        self.content += bytes(-len(self.content) % 4)

    def finish(self):
        self.add("TRAILER!!!", 0)
        return bytes(self.content)


def static_busybox():
    for path in BUSYBOX_PATHS:
        if os.access(path, os.X_OK):
            return pathlib.Path(path).read_bytes()
    raise Unavailable("busybox-static is not installed (tools/install)")


def build(kernel):
    """The archive's bytes."""
    archive = Archive()
    for directory in ("bin", "dev", "modules", "proc"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("bin/busybox", stat.S_IFREG | 0o755, static_busybox())
    archive.add("init", stat.S_IFREG | 0o755, INIT_SCRIPT.read_bytes())
    for number, file in enumerate(kernel.insmod_order(*MODULES)):
        archive.add(f"modules/{number:02}-{file.name}", stat.S_IFREG | 0o644, file.read_bytes())
    return archive.finish()
