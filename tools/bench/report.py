"""What the comparison says: tables in markdown, JSON, and the part of a document that a run replaces.

`Results` holds every value of every round; all else is computed from it.
"""
import json
import pathlib
import statistics

from machine import GIB

BEGIN = "<!-- tools/bench/run writes what follows -->"
END = "<!-- tools/bench/run wrote what precedes -->"


class Entry:
    """One row of one peer, over the rounds."""

    def __init__(self):
        self.values, self.cpu, self.peak_mib, self.data_bytes = [], [], [], []
        self.why_not = None  # NotApplicable, or why it failed

    def median(self):
        return statistics.median(self.values) if self.values else None

    def value(self, row, best):
        """The median, or that of the best round."""
        if not self.values or not best:
            return self.median()
        return min(self.values) if row.lower_is_better else max(self.values)

    def cpu_figure(self):
        """Seconds per GiB where the row moves data, else seconds; None for a peer without a server."""
        if not self.cpu:
            return None
        if any(self.data_bytes):
            return statistics.median(c / (b / GIB) for c, b in zip(self.cpu, self.data_bytes) if b)
        return statistics.median(self.cpu)

    def as_json(self):
        return {"values": self.values, "median": self.median(), "cpu_seconds": self.cpu,
                "data_bytes": self.data_bytes, "peak_mib": self.peak_mib, "why_not": self.why_not}


class Results:
    def __init__(self, rows, peers, settings):
        self.rows, self.peers, self.settings = rows, peers, settings
        self.entries = {(row.name, name): Entry() for row in rows for name in peers}
        self.remarks = []  # what a reader must know about single cells

    def entry(self, row, name):
        return self.entries.get((row.name, name)) or Entry()

    def remark(self, text):
        if text not in self.remarks:
            self.remarks.append(text)

    def own_columns(self):
        return [name for name in self.peers if name.split(":")[0] == "cofs"]

    def bound_of(self, name):
        """The server that does nothing and gets the requests that the column `name` gets; None: it was not measured."""
        options = [option for option in options_of(name) if option]
        bound = {(): "nothing", ("io_uring",): "nothing:io_uring"}.get(tuple(options))
        return bound if bound in self.peers else None

    def same_transport(self, name, other):
        """The column of this peer that gets its requests by the way that `name` does, where there is one."""
        by_ring = f"{other}:io_uring"
        return by_ring if "io_uring" in options_of(name) and by_ring in self.peers else other

    def ratio(self, row, name, other, best=False):
        """How many times better `name` is than `other`; below 1 it is worse. None: not both were measured.

        best: `name` by its best round.
        """
        mine, theirs = self.entry(row, name).value(row, best), self.entry(row, other).median()
        if mine is None or theirs is None:
            return None
        better, worse = (theirs, mine) if row.lower_is_better else (mine, theirs)
        return better / worse if worse else None

    def judge(self, row, name, target, best=False):
        """(what was found, whether that is enough), as a text and a bool; None: it could not be judged. best: see ratio()."""
        if target.only_with and target.only_with not in options_of(name):
            return None
        if target.bound is not None:
            value = self.entry(row, name).value(row, best)
            if value is None:
                return None
            return figure(value), value <= target.bound if row.lower_is_better else value >= target.bound
        others = [self.same_transport(name, other) for other in target.peers]
        ratios = [r for r in (self.ratio(row, name, other, best) for other in others) if r is not None]
        return (f"{min(ratios):.2f} ×", min(ratios) >= target.factor) if ratios else None


def options_of(name):
    return name.partition(":")[2].split("+")


def figure(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}" if value >= 0.1 else f"{value:,.3f}"


def spread(entry):
    if not entry.values:
        return "failed" if entry.why_not and entry.why_not.startswith("failed") else "–"
    text = figure(entry.median())
    if len(entry.values) > 1:
        text += f" ({figure(min(entry.values))}–{figure(max(entry.values))})"
    return text


def table(head, lines):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
                      *("| " + " | ".join(line) + " |" for line in lines)])


def figures_table(results):
    lines = [[row.name, row.unit, *(spread(results.entry(row, name)) for name in results.peers)]
             for row in results.rows]
    return table(["row", "unit", *results.peers], lines)


def can_be_reached(results, row, target, names):
    """By any of these in its best round: noise makes figures worse, so a median would say too often that it cannot be."""
    return any(verdict and verdict[1] for verdict in (results.judge(row, name, target, best=True) for name in names))


def bound_cell(results, row, target, bound, own):
    """What a server that does nothing has of the target, and what cofs has of that server's figure."""
    verdict = results.judge(row, bound, target)
    if verdict is None:
        return "–"
    text = verdict[0] if can_be_reached(results, row, target, (bound, own)) else f"{verdict[0]}: **cannot be reached**"
    share = results.ratio(row, own, bound)
    return f"{text}; {own} has {share:.0%}" if share else text


def targets_table(results):
    own = results.own_columns()
    bounds = {results.bound_of(name): name for name in reversed(own) if results.bound_of(name)}
    bounds = {bound: bounds[bound] for bound in results.peers if bound in bounds}
    lines = []
    for row in results.rows:
        for target in row.targets:
            verdicts = [results.judge(row, name, target) for name in own]
            if not any(verdicts):
                continue
            limit = f"{'≤' if row.lower_is_better and target.bound is not None else '≥'} {target}"
            unit = f" {row.unit}" if target.bound is not None else ""
            cells = ["–" if v is None else f"{v[0]} {'reached' if v[1] else '**not reached**'}" for v in verdicts]
            cells += [bound_cell(results, row, target, bound, name) for bound, name in bounds.items()]
            lines.append([row.name, limit + unit, *cells])
    return table(["row", "to reach", *own, *bounds], lines) if lines else ""


def server_table(results):
    """Only peers with a server have something to show."""
    names = [n for n in results.peers if any(results.entry(row, n).cpu for row in results.rows)]
    lines = []
    for row in results.rows:
        cells = []
        for name in names:
            entry = results.entry(row, name)
            cells.append(f"{entry.cpu_figure():.2f} · {max(entry.peak_mib):.0f}" if entry.cpu else "–")
        if any(cell != "–" for cell in cells):
            lines.append([row.name, "s/GiB" if row.data else "s", *cells])
    return table(["row", "CPU", *(f"{n}: CPU · MiB" for n in names)], lines) if lines else ""


def machine_text(settings):
    m = settings["machine"]
    return (f"{m['cores']} cores ({m['processor']}), {m['memory_mib'] / 1024:.0f} GiB of memory, Linux {m['kernel']}; "
            f"{m['time']}, load at the start {m['load'][0]:.1f}. Loop device of {settings['size'] / GIB:g} GiB in memory "
            f"(tmpfs), direct-io; {settings['rounds']} rounds in turns, amounts × {settings['scale']:g}. "
            f"{settings['version']}.")


def peers_of_targets(results):
    return {peer for row in results.rows for target in row.targets for peer in target.peers}


def document(results):
    twice = [name for name in results.peers if name.endswith(":io_uring") and name.split(":")[0] in peers_of_targets(results)]
    parts = [machine_text(results.settings), figures_table(results),
             "Median over the rounds (least–most). –: this filesystem has no such thing."]
    if len(results.own_columns()) > 0 and targets_table(results):
        parts += ["What is to be reached; a ratio above 1 is in favour of cofs, whatever the unit." + (
            " The columns `nothing`: the same of a server that does nothing, which has its requests by the same way; then, what "
            "cofs has of what that server reaches. What neither reaches in its best round cannot be reached by that way."
            if any(results.bound_of(name) for name in results.own_columns()) else "") + "".join(
            f" Columns with io_uring are compared with `{name}`, the others with `{name.split(':')[0]}`." for name in twice),
            targets_table(results)]
    if server_table(results):
        parts += ["Processor time of the server (median; per GiB where the row moves data) and the most memory that it had "
                  "resident in any round:", server_table(results)]
    parts += [f"- {remark}" for remark in results.remarks]
    return "\n\n".join(parts)


def as_json(results):
    rows = []
    for row in results.rows:
        targets = []
        for target in row.targets:
            for name in results.own_columns():
                verdict = results.judge(row, name, target)
                if verdict is not None:
                    bound = results.bound_of(name)
                    targets.append({"column": name, "target": str(target), "found": verdict[0], "reached": verdict[1],
                                    "bound": bound and results.judge(row, bound, target),
                                    "can_be_reached": can_be_reached(results, row, target, (bound or name, name)),
                                    "share_of_bound": bound and results.ratio(row, name, bound)})
        rows.append({"name": row.name, "unit": row.unit, "lower_is_better": row.lower_is_better, "targets": targets,
                     "peers": {name: results.entry(row, name).as_json() for name in results.peers}})
    return json.dumps({**results.settings, "remarks": results.remarks, "rows": rows}, indent=2) + "\n"


def replace_part(path, text):
    """Puts `text` between the two comments of the document; what is around it stays. Errors: ValueError."""
    path = pathlib.Path(path)
    whole = path.read_text(encoding="utf-8")
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise ValueError(f"{path}: has not the lines {BEGIN} and {END}, once and in this order")
    head, rest = whole.split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
