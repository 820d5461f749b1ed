"""What volumes lie on in a guest: the emulated disks, found again, and what is built on them.

A Target is a block device with the disks below it, whose reads the kernel counts, and with what the copy
engine should make of it. Partition, linear volume and LIO disk are made here, from disks that the host gave.
"""
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import struct
import time

import harness as h

SHARE = pathlib.Path("/run/share")
SYS_BLOCK = pathlib.Path("/sys/block")
TARGET_CORE = pathlib.Path("/sys/kernel/config/target/core/fileio_0")
LOOPBACK = pathlib.Path("/sys/kernel/config/target/loopback")
APPEAR_SECONDS_MAX = 30
BLOCK_BYTES = 4096
SECTOR_BYTES = 512  # of the kernel's own counting, whatever the LBA
BLKRRPART = 0x125F
NVME_RANGES_MAX = 256


@dataclasses.dataclass
class Target:
    name: str
    path: pathlib.Path
    disks: list                    # kernel names of the whole disks below
    engine: str | None = None      # what must serve copies; None: the host
    refusal: str = ""              # without an engine: what the reason must name
    command_blocks: int = 0        # scattered blocks that one command can gather
    split: bool = False            # on several disks: copies between these are the host's

    def bytes_read(self):
        """By the kernel's count of reads from the disks below. Copy commands are not in it."""
        names = [name for disk in self.disks for name in counted_names(disk)]
        return SECTOR_BYTES * sum(int((SYS_BLOCK / name / "stat").read_text().split()[2]) for name in names)


def counted_names(disk):
    """A multipath NVMe namespace is counted on its hidden paths: nvme0n1 on nvme0c0n1."""
    match = re.fullmatch(r"(nvme\d+)(n\d+)", disk)
    paths = [entry.name for entry in SYS_BLOCK.glob(f"{match[1]}c*{match[2]}")] if match else []
    return paths or [disk]


def load_module(name, **parameters):
    options = [f"{key}={value}" for key, value in parameters.items()]
    h.run_command("modprobe", "-d", os.environ["LAB_MODULES"], name, *options)


def wait_for(find, what):
    """What find() finds, once it does."""
    deadline = time.monotonic() + APPEAR_SECONDS_MAX
    while not (found := find()):
        if time.monotonic() > deadline:
            raise h.Failure(f"no {what} after {APPEAR_SECONDS_MAX} s")
        time.sleep(0.05)
    return found


def nvme_disk(nsid):
    for entry in SYS_BLOCK.glob("nvme*"):
        if re.fullmatch(r"nvme\d+n\d+", entry.name) and (entry / "nsid").read_text().strip() == str(nsid):
            return entry.name
    return None


def serial_disk(serial):
    """A virtio disk has the attribute `serial`, a SCSI disk the page of the inquiry that holds it."""
    for entry in SYS_BLOCK.iterdir():
        for attribute in ("serial", "device/vpd_pg80"):
            file = entry / attribute
            if file.exists() and serial in file.read_bytes().decode(errors="replace"):
                return entry.name
    return None


class Devices:
    """The guest's disks by the names that the test gave them, and the targets made of them."""

    def __init__(self, **nvme_parameters):
        self.disks = json.loads((SHARE / "job.json").read_text())["disks"]
        kinds = {disk["kind"] for disk in self.disks.values()}
        load_module("fuse")
        if "NvmeNamespace" in kinds:
            load_module("nvme_core", **nvme_parameters)
            load_module("nvme")
        if "VirtioDisk" in kinds:
            load_module("virtio_blk")
        if "ScsiDisk" in kinds:
            load_module("virtio_scsi")
            load_module("sd_mod")

    def kernel_name(self, name):
        disk = self.disks[name]
        if disk["kind"] == "NvmeNamespace":
            return wait_for(lambda: nvme_disk(disk["nsid"]), f"NVMe namespace {disk['nsid']}")
        return wait_for(lambda: serial_disk(name), f"disk with the serial number {name}")

    def nvme_copy_blocks(self, name):
        """Blocks apart from each other that one Copy can gather; 0 if the namespace has no Copy."""
        disk = self.disks[name]
        limit_bytes = min(disk["mssrl"], disk["mcl"]) * disk["lba_bytes"]
        return min(disk["msrc"] + 1, NVME_RANGES_MAX, disk["mcl"] * disk["lba_bytes"] // BLOCK_BYTES) \
            if limit_bytes >= BLOCK_BYTES else 0

    def nvme_engine(self, name):
        """Target's fields that follow from a namespace's limits."""
        blocks = self.nvme_copy_blocks(name)
        return {"engine": "nvme", "command_blocks": blocks} if blocks else {"refusal": "nvme"}

    def whole(self, name):
        """The disk itself."""
        kernel_name = self.kernel_name(name)
        facts = self.nvme_engine(name) if self.disks[name]["kind"] == "NvmeNamespace" else {"refusal": "xcopy"}
        return Target(name, pathlib.Path("/dev", kernel_name), [kernel_name], **facts)

    def partition(self, name, disk_name, start_lba):
        """The only partition of a namespace, up to its end. An MBR counts in LBAs."""
        kernel_name = self.kernel_name(disk_name)
        disk = self.disks[disk_name]
        count = disk["bytes"] // disk["lba_bytes"] - start_lba
        entry = struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start_lba, count)
        table = bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa"
        with open(f"/dev/{kernel_name}", "r+b", buffering=0) as file:
            file.write(table.ljust(disk["lba_bytes"], b"\0"))
            os.fsync(file.fileno())
            fcntl.ioctl(file, BLKRRPART)
        path = pathlib.Path(f"/dev/{kernel_name}p1")
        wait_for(path.exists, f"partition {path}")
        return Target(name, path, [kernel_name], **self.nvme_engine(disk_name))

    def linear(self, name, *disk_names):
        """A device-mapper volume of whole namespaces, one behind the other."""
        load_module("dm_mod")
        table, start = [], 0
        for disk_name in disk_names:
            sectors = self.disks[disk_name]["bytes"] // SECTOR_BYTES
            table.append(f"{start} {sectors} linear /dev/{self.kernel_name(disk_name)} 0")
            start += sectors
        # Nobody runs udev here: dmsetup is to make the node itself.
        h.run_command("dmsetup", "create", name, input="\n".join(table),
                      env=os.environ | {"DM_DISABLE_UDEV": "1"})
        facts = [self.nvme_engine(disk_name) for disk_name in disk_names]
        return Target(name, pathlib.Path("/dev/mapper", name),
                      [self.kernel_name(disk_name) for disk_name in disk_names], split=True,
                      **min(facts, key=lambda fact: fact.get("command_blocks", 0)))

    def lio(self, name, disk_name, number=1):
        """A SCSI disk of the kernel's target, which executes EXTENDED COPY: one segment a command.

        It has a volatile cache, the guest's page cache: what was not flushed is lost with the guest.
        """
        for module in ("sd_mod", "sg", "target_core_mod", "target_core_file", "tcm_loop"):
            load_module(module)
        if not TARGET_CORE.parents[1].exists():
            h.run_command("mount", "-t", "configfs", "configfs", TARGET_CORE.parents[2])
        object_path = TARGET_CORE / name
        object_path.mkdir(parents=True)
        backing = self.kernel_name(disk_name)
        size = self.disks[disk_name]["bytes"]
        write(object_path / "control", f"fd_dev_name=/dev/{backing},fd_dev_size={size},fd_buffered_io=1")
        serial = f"00000000-0000-0000-0000-{number:012x}"
        write(object_path / "wwn/vpd_unit_serial", serial)
        write(object_path / "enable", "1")
        port = LOOPBACK / f"naa.600140500000{number:04x}" / "tpgt_1"
        port.mkdir(parents=True)
        write(port / "nexus", f"naa.600140510000{number:04x}")
        (port / "lun/lun_0").mkdir()
        (port / "lun/lun_0/backing").symlink_to(object_path)
        kernel_name = wait_for(lambda: serial_disk(serial), f"LIO disk {serial}")
        return Target(name, pathlib.Path("/dev", kernel_name), [kernel_name], engine="xcopy", command_blocks=1)


def set_lio_copy(target, enabled):
    """Whether the disk executes EXTENDED COPY from now on."""
    write(TARGET_CORE / target.name / "attrib/emulate_3pc", "1" if enabled else "0")


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
