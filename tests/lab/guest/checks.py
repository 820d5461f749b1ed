"""The frame of a job: a PASS or FAIL line for every check, the answer to the host, the exit status.

A job is a script whose `job(checks, arguments)` is given to run().
"""
import contextlib
import json
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "e2e"))
import harness as h  # noqa: E402  the mounted tests' harness serves in the guest as well

SHARE = pathlib.Path("/run/share")


class Checks:
    def __init__(self, seed):
        self.seed = seed
        self.failed = 0
        self.passed = 0
        self.answer = {}

    def check(self, condition, what):
        """Counts and prints; a failed check does not end the job."""
        print(f"{'PASS' if condition else 'FAIL'}  {what}", flush=True)
        if condition:
            self.passed += 1
        else:
            self.failed += 1
        return condition

    @contextlib.contextmanager
    def part(self, what, volume, keep_mounted=False):
        """A part of a job on one volume: a problem in it fails the part, with the server's log, not the rest."""
        start = time.monotonic()
        try:
            yield
        except (h.Failure, OSError, subprocess.SubprocessError) as problem:
            self.check(False, f"{what}: {type(problem).__name__}: {problem}")
            volume.show_log()
        finally:
            if not keep_mounted:
                volume.dispose()
        h.note(f"----  {what}: {time.monotonic() - start:.1f} s")

    def record(self, *path, **values):
        """Puts values into the answer, at a path of names."""
        place = self.answer
        for name in path:
            place = place.setdefault(name, {})
        place.update(values)


def publish(name, text):
    """A file for the host to see, whole or not at all."""
    scratch = SHARE / f".{name}"
    scratch.write_text(text)
    scratch.rename(SHARE / name)


def run(job):
    description = json.loads((SHARE / "job.json").read_text())
    checks = Checks(description["seed"])
    job(checks, description["arguments"])
    publish("answer.json", json.dumps(checks.answer))
    h.note(f"{checks.passed} checks passed, {checks.failed} failed")
    sys.exit(1 if checks.failed or not checks.passed else 0)
