"""The emulated disks of a lab guest, and the QEMU arguments that make them.

A disk is a sparse raw image on the host; `name` says in tests which one is meant. How the guest finds it
again: an NVMe namespace by its number, a virtio or SCSI disk by its serial number, which is the name.
"""
import dataclasses
import json

MIB = 1 << 20
# Limits of a good device, in LBAs of 4 KiB and of 512 bytes: 4 MiB a range, 64 MiB a command.
GOOD_LIMITS = {"mssrl": 1024, "mcl": 16_384}
GOOD_LIMITS_512 = {"mssrl": 8192, "mcl": 131_072}


@dataclasses.dataclass(frozen=True)
class Disk:
    name: str
    bytes: int
    lba_bytes: int = 512
    # Of reads and writes together, a copy's too; 0: as fast as it goes. A slow disk always has commands under
    # way.
    bytes_per_second: int = 0


@dataclasses.dataclass(frozen=True)
class NvmeNamespace(Disk):
    """QEMU executes Copy within the limits; they are in LBAs, msrc is one less than the ranges."""

    mssrl: int = 128   # the defaults are QEMU's own
    mcl: int = 128
    msrc: int = 127
    # Places that fail, as offsets into the disk, always or at the first try; 512 bytes each.
    fail_reads: tuple = ()
    fail_reads_once: tuple = ()
    fail_writes_once: tuple = ()


@dataclasses.dataclass(frozen=True)
class VirtioDisk(Disk):
    """A disk for the guest to build another on; it takes no SCSI or NVMe commands at all."""


@dataclasses.dataclass(frozen=True)
class ScsiDisk(Disk):
    """A SCSI disk that has no copy command (QEMU's)."""


def fault_places(disk):
    if not isinstance(disk, NvmeNamespace):
        return []
    return [("read", False, disk.fail_reads), ("read", True, disk.fail_reads_once),
            ("write", True, disk.fail_writes_once)]


def backing(disk, image):
    """The block node of a disk: its image file, below layers of faults and of slowness where it has them."""
    node = {"driver": "raw", "discard": "unmap",
            "file": {"driver": "file", "filename": str(image), "discard": "unmap", "cache": {"direct": True}}}
    rules = [{"event": "none", "iotype": access, "errno": 5, "sector": place // 512, "once": once}
             for access, once, places in fault_places(disk) for place in places]
    if rules:
        node = {"driver": "blkdebug", "image": node, "inject-error": rules, "discard": "unmap"}
    if disk.bytes_per_second:
        node = {"driver": "throttle", "throttle-group": f"{disk.name}-speed", "file": node, "discard": "unmap"}
    return json.dumps({"node-name": disk.name} | node)


def qemu_arguments(disks, images):
    """All disks: namespaces in one NVMe subsystem, in order from 1; SCSI disks on one controller."""
    arguments = []
    namespaces = [disk for disk in disks if isinstance(disk, NvmeNamespace)]
    for disk in disks:
        if disk.bytes_per_second:
            arguments += ["-object", f"throttle-group,id={disk.name}-speed,x-bps-total={disk.bytes_per_second}"]
        arguments += ["-blockdev", backing(disk, images[disk.name])]
    if namespaces:
        arguments += ["-device", "nvme-subsys,id=subsystem,nqn=lab",
                      "-device", "nvme,serial=lab,subsys=subsystem"]
    for number, disk in enumerate(namespaces, 1):
        arguments += ["-device", f"nvme-ns,drive={disk.name},nsid={number},"
                      f"logical_block_size={disk.lba_bytes},physical_block_size={max(4096, disk.lba_bytes)},"
                      f"mssrl={disk.mssrl},mcl={disk.mcl},msrc={disk.msrc}"]
    for disk in disks:
        if isinstance(disk, VirtioDisk):
            arguments += ["-device", f"virtio-blk-pci,drive={disk.name},serial={disk.name},"
                          f"logical_block_size={disk.lba_bytes},physical_block_size={disk.lba_bytes}"]
    if any(isinstance(disk, ScsiDisk) for disk in disks):
        arguments += ["-device", "virtio-scsi-pci,id=scsi"]
    for disk in disks:
        if isinstance(disk, ScsiDisk):
            arguments += ["-device", f"scsi-hd,bus=scsi.0,drive={disk.name},serial={disk.name}"]
    return arguments


def description(disks):
    """What the guest is told of the disks, by name."""
    found = {}
    namespace = 0
    for disk in disks:
        entry = dataclasses.asdict(disk) | {"kind": type(disk).__name__}
        if isinstance(disk, NvmeNamespace):
            namespace += 1
            entry["nsid"] = namespace
        found[disk.name] = entry
    return found
