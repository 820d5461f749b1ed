#!/usr/bin/env python3
"""A git clone of 4,200 files onto the mount passes `git fsck` before and after a remount."""
import harness as h

FILES = 4200
DIRECTORIES = 140


def make_repository(space, path):
    path.mkdir()
    for i in range(FILES):
        directory = path / f"d{i % 12}" / f"s{i % DIRECTORIES}"
        directory.mkdir(parents=True, exist_ok=True)
        size = int(space.random.paretovariate(1.1) * 400) % 60000
        text = "".join(f"{space.random.getrandbits(64):x} line\n" for _ in range(size // 20 + 1))
        (directory / f"file{i}.txt").write_text(text)
    git(path, "init", "--quiet", "--initial-branch=main")
    git(path, "add", ".")
    git(path, "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "-m", "all")


def git(path, *arguments):
    return h.run_command("git", "-C", path, "-c", "safe.directory=*", *arguments)


def check_clone(source, clone):
    h.check(len(git(clone, "ls-files").splitlines()) == FILES, "files are missing in the clone")
    git(clone, "fsck", "--full", "--strict")
    h.check(git(clone, "status", "--porcelain") == "", "the clone differs from its index")
    h.run_command("diff", "-r", "--exclude=.git", source, clone)


def test(space):
    h.require_programs("git", "diff")
    source = space.directory / "source"
    make_repository(space, source)
    volume = space.volume(size="1G").mount()
    clone = volume.path("clone")
    h.run_command("git", "-c", "safe.directory=*", "clone", "--quiet", f"file://{source}", clone)
    check_clone(source, clone)
    volume.remount()
    check_clone(source, clone)
    volume.umount()
    volume.fsck()
    h.note(f"git clone of {FILES} files: git fsck passes before and after a remount")


h.run(test)
