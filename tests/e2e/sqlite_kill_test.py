#!/usr/bin/env python3
"""SQLite (WAL and DELETE journals, synchronous=FULL) over kill -9 of the server in mid-transaction.

Every transaction adds rows and counts them in another table. After each kill: integrity_check passes,
the count is the number of rows, and every transaction whose COMMIT returned is there.
COFS_KILL_ROUNDS: kills (default 10; 50 in a full run), the two journal modes in turn.
"""
import sqlite3
import sys
import time

import harness as h

START_SECONDS_MAX = 60


def connect(path, journal):
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def helper(database, journal, first, committed_path):
    """Commits transactions until the filesystem dies; notes each number once COMMIT returned."""
    connection = connect(database, journal)
    connection.execute("CREATE TABLE IF NOT EXISTS item(txn INTEGER, part INTEGER, text TEXT)")
    connection.execute("CREATE TABLE IF NOT EXISTS total(items INTEGER)")
    if not connection.execute("SELECT count(*) FROM total").fetchone()[0]:
        connection.execute("INSERT INTO total VALUES(0)")
    with open(committed_path, "a", encoding="ascii", buffering=1) as committed:
        for txn in range(int(first), 1 << 40):
            parts = txn % 7 + 1
            connection.execute("BEGIN IMMEDIATE")
            for part in range(parts):
                connection.execute("INSERT INTO item VALUES(?,?,?)", (txn, part, f"{txn}/{part} " * 40))
            connection.execute("UPDATE total SET items = items + ?", (parts,))
            connection.execute("COMMIT")
            committed.write(f"{txn}\n")


def committed_transactions(path):
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [int(line) for line in lines]


def check_database(database, committed, kills):
    connection = sqlite3.connect(database, timeout=5)
    answer = connection.execute("PRAGMA integrity_check").fetchone()[0]
    h.check(answer == "ok", f"integrity_check: {answer}")
    count = connection.execute("SELECT count(*) FROM item").fetchone()[0]
    total = connection.execute("SELECT items FROM total").fetchone()[0]
    h.check(count == total, f"{count} rows, {total} counted: a transaction was torn")
    found = dict(connection.execute("SELECT txn, count(*) FROM item GROUP BY txn"))
    lost = [txn for txn in committed if found.get(txn) != txn % 7 + 1]
    h.check(not lost, f"committed transactions were lost: {lost[:10]}, the last committed one is {committed[-1]}")
    wrong = connection.execute("SELECT count(*) FROM item "
                               "WHERE text NOT LIKE txn||'/'||part||' %'").fetchone()[0]
    h.check(wrong == 0, f"{wrong} rows with other contents")
    extra = set(found) - set(committed)
    # A kill may hit between the moment a transaction is durable and the moment COMMIT returns.
    h.check(len(extra) <= kills, f"transactions out of nowhere: {sorted(extra)[:10]}")
    connection.close()
    return max(found, default=0)


def kill_round(space, volume, journal, committed_path, first, kills):
    database = volume.path(f"{journal.lower()}.db")
    before = len(committed_transactions(committed_path))
    writer = space.start_self(database, journal, first, committed_path)
    deadline = time.monotonic() + START_SECONDS_MAX
    while len(committed_transactions(committed_path)) < before + 3:
        h.check(writer.poll() is None, "the writer ended before the kill")
        h.check(time.monotonic() < deadline, "the writer commits nothing")
        time.sleep(0.005)
    time.sleep(space.random.uniform(0.0, 0.4))
    h.check(writer.poll() is None, "the writer ended before the kill")
    volume.kill()
    writer.wait(timeout=60)
    volume.clear_dead_mount()
    volume.mount()
    committed = committed_transactions(committed_path)
    last = check_database(database, committed, kills)
    return len(committed) - before, max(last, committed[-1]) + 1


def test(space):
    rounds = h.number_from("COFS_KILL_ROUNDS", 10)
    volume = space.volume(size="512M").mount()
    state = {"WAL": 1, "DELETE": 1}
    exercised = 0
    for i in range(rounds):
        journal = ("WAL", "DELETE")[i % 2]
        done, state[journal] = kill_round(space, volume, journal, space.directory / f"{journal}.committed",
                                          state[journal], i // 2 + 1)
        exercised += done
    h.check(exercised >= 3 * rounds, f"only {exercised} transactions in {rounds} rounds")
    volume.umount()
    volume.fsck()
    h.note(f"sqlite: {rounds} kills of the server, {exercised} committed transactions, none lost")


if h.helper_arguments() is not None:
    try:
        helper(*h.helper_arguments())
    except (sqlite3.Error, OSError):
        sys.exit(3)  # the filesystem is gone: what the test waits for
h.run(test)
