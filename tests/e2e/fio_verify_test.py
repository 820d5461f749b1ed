#!/usr/bin/env python3
"""fio with verify: random writes of mixed sizes, buffered and O_DIRECT, checked before and after a remount.

COFS_FIO_MB: data per job (default 96).
"""
import harness as h

JOBS = {
    # O_DIRECT over FUSE asks for no alignment; 512-byte steps also cross our 4 KiB blocks.
    "buffered": ["--direct=0", "--bsrange=512-128k", "--blockalign=512", "--ioengine=psync"],
    "direct": ["--direct=1", "--bsrange=512-256k", "--blockalign=512", "--ioengine=libaio", "--iodepth=8"],
    "mapped": ["--direct=0", "--bs=4k", "--ioengine=mmap", "--fsync=256"],
}


def fio(volume, name, options, megabytes, seed, *more):
    # serialize_overlap: which of two overlapping writes in flight comes last is not defined.
    h.run_command("fio", f"--name={name}", f"--directory={volume.mount_point}", "--rw=randwrite",
                  f"--size={megabytes}M", f"--randseed={seed}", "--verify=crc32c", "--verify_fatal=1",
                  "--serialize_overlap=1" if "libaio" in "".join(options) else "--end_fsync=1",
                  "--group_reporting", *options, *more,
                  cwd=volume.image.parent)  # where fio leaves its state files


def test(space):
    h.require_programs("fio")
    megabytes = h.number_from("COFS_FIO_MB", 96)
    volume = space.volume(size="1G").mount()
    for name, options in JOBS.items():
        fio(volume, name, options, megabytes, space.seed % 100000)
    volume.remount()
    for name, options in JOBS.items():
        fio(volume, name, options, megabytes, space.seed % 100000, "--verify_only=1")
    volume.umount()
    volume.fsck()
    h.note(f"fio verify: {len(JOBS)} jobs of {megabytes} MiB, before and after a remount")


h.run(test)
