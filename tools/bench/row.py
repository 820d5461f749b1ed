"""What a row of the comparison is, and a figure that it is to reach.
"""


class Target:
    """`factor` times the best of `peers` (of those that took part), or `bound` in the row's unit.

    only_with: asked only of columns of cofs with this mount option.
    """

    def __init__(self, factor=None, peers=(), bound=None, only_with=None):
        self.factor, self.peers, self.bound, self.only_with = factor, peers, bound, only_with

    def __str__(self):
        if self.bound is not None:
            return f"{self.bound:,g}"
        return f"{self.factor:g} × {' / '.join(self.peers)}"


def each(factor, *peers):
    return [Target(factor, (peer,)) for peer in peers]


class Row:
    """One thing that is measured: measure(work) returns a value in `unit`, or raises NotApplicable.

    needs: the row that makes what this one uses. prepare(work): what it needs by itself, not measured. cold: caches are
    dropped then. data: its processor time is given per GiB. files: its amount is the number of files. transport: a server
    that does nothing can serve it, and says what the transport lets any reach; else the row is about what a server does.
    """

    def __init__(self, name, unit, measure, targets=(), needs=None, prepare=None, cold=False, data=False, files=False,
                 transport=True, note=""):
        self.name, self.unit, self.measure, self.targets = name, unit, measure, list(targets)
        self.needs, self.prepare, self.cold, self.data, self.files = needs, prepare, cold, data, files
        self.transport, self.note = transport, note
        self.lower_is_better = unit in ("s", "ms")
