"""What the rows work on: one peer's mounted directory in one round, the sizes of all data, and the source tree.
"""
import json
import pathlib
import random
import tarfile
import tempfile

from machine import MIB, command

FILES = 20_000
DIRECTORIES = 20
TREE_FILES = 4_300
TREE_SEED = 7


class NotApplicable(Exception):
    """This peer has no such row."""


class Work:
    def __init__(self, peer, scale, tree):
        self.peer = peer
        self.directory = pathlib.Path(peer.mount_point)
        self.big_bytes = max(8, int(1024 * scale)) * MIB
        self.random_bytes = max(4, int(128 * scale)) * MIB
        self.appends = max(200, int(4000 * scale))
        self.files = max(DIRECTORIES, int(FILES * scale))
        self.fewer_files = peer.files_max is not None and peer.files_max < self.files
        if self.fewer_files:
            self.files = peer.files_max
        self.transactions = max(100, int(2000 * scale))
        self.seconds = max(1, int(4 * scale))
        self.tree = tree
        self.big = self.directory / "big"
        self.bytes_of_data = 0  # what the row that runs moved; see fio() and counted()

    def counted(self, size):
        self.bytes_of_data = size
        return size

    def fio(self, name, **options):
        arguments = [f"--{key}={value}" for key, value in options.items()]
        report = command("fio", f"--name={name}", f"--filename={self.big}", "--output-format=json", "--thread",
                         "--randrepeat=1", *arguments)
        job = json.loads(report[report.index("{"):])["jobs"][0]
        self.bytes_of_data = job["read"]["io_bytes"] + job["write"]["io_bytes"]
        return job

    def names(self):
        return [str(self.directory / f"d{i % DIRECTORIES}" / f"file{i}") for i in range(self.files)]

    def make_durable(self):
        self.peer.make_durable()


class Tree:
    """The files of a source tree (some 40 MB, the same in every run), as a tar file and as a git repository."""

    def __init__(self, directory):
        directory = pathlib.Path(directory)
        self.tar = directory / "tree.tar"
        self.repository = directory / "repository"
        choice = random.Random(TREE_SEED)
        words = [choice.randbytes(6).hex() for _ in range(2000)]
        with tarfile.open(self.tar, "w") as archive, tempfile.NamedTemporaryFile("w+", dir=directory) as file:
            for i in range(TREE_FILES):
                file.seek(0)
                file.truncate()
                size = min(int(choice.paretovariate(1.2) * 2200), 400_000)
                file.write(" ".join(choice.choices(words, k=size // 13 + 1)))
                file.flush()
                archive.add(file.name, f"src/part{i % 60}/sub{i % 7}/file{i}.c")

    def make_repository(self):
        if self.repository.exists():
            return
        self.repository.mkdir()
        git = ["git", "-C", self.repository, "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        command("tar", "-xf", self.tar, "-C", self.repository)
        command(*git, "init", "-q", "-b", "main")
        command(*git, "add", "-A")
        command(*git, "commit", "-q", "-m", "all files")
        command(*git, "repack", "-a", "-d", "-q")
