"""The picture of the comparison: for each row, how many times better cofs is than each other filesystem.

Horizontal bars on a logarithmic scale that begin at 1: to the right cofs is ahead. By gnuplot, PNG and SVG alike.
"""
import pathlib
import shutil
import subprocess
import tempfile

COLOURS = {"passthrough_hp": "#d95f02", "fuse2fs": "#7570b3", "ntfs-3g": "#1b9e77", "ext4": "#666666",
           "xfs": "#999999", "btrfs": "#c8c8c8"}
ROW_PIXELS = 20  # of one bar
BARS_SHARE = 0.8  # of a row's height
TERMINALS = {".png": "pngcairo size {width},{height} font 'sans,11'", ".svg": "svg size {width},{height} font 'sans,12'"}
WIDTH = 1000


def missing():
    return None if shutil.which("gnuplot") else "gnuplot is not installed (tools/install --bench)"


def bars(results, own, others):
    """For each other peer the bars' lines: ratio, and the lower and upper end on the axis of rows."""
    rows = [row for row in results.rows if any(results.ratio(row, own, o) for o in others)]
    height = BARS_SHARE / len(others)
    found = {}
    for place, other in enumerate(others):
        lines = []
        for index, row in enumerate(rows):
            ratio = results.ratio(row, own, other)
            if ratio:
                top = index - BARS_SHARE / 2 + place * height
                lines.append(f"{ratio:.6g} {index} {min(1, ratio):.6g} {max(1, ratio):.6g} {top:.4f} {top + height:.4f}")
        found[other] = lines
    return rows, found


def script(results, own, others, output):
    rows, lines = bars(results, own, others)
    height = 110 + ROW_PIXELS * len(rows) * max(2, len(others)) * 2 // 3
    labels = ", ".join(f'"{row.name}" {i}' for i, row in enumerate(rows))
    text = [f"set terminal {TERMINALS[output.suffix].format(width=WIDTH, height=height)} noenhanced",
            f"set output '{output}'", "set logscale x",
            f"set title '{own}, how many times as good as the others (right of 1: ahead)'",
            f"set yrange [{len(rows) - 0.4}:-0.6]", f"set ytics ({labels}) scale 0", "set grid x",
            "set xtics ('1/100' 0.01, '1/30' 0.0333, '1/10' 0.1, '1/4' 0.25, '1/2' 0.5, '1' 1, '2' 2, '4' 4, '10' 10, "
            "'30' 30, '100' 100, '1000' 1000)", "set style fill solid 0.9 noborder",
            "set key outside bottom center horizontal reverse Left",
            "set arrow from 1, graph 0 to 1, graph 1 nohead lw 2 lc rgb '#000000' front"]
    for other in others:
        if lines[other]:
            text += [f"${identifier(other)} << END", *lines[other], "END"]
    plots = [f"${identifier(o)} using 1:2:3:4:5:6 with boxxyerror lc rgb '{COLOURS[o]}' title '{o}'"
             for o in others if lines[o]]
    return "\n".join([*text, "plot " + ", ".join(plots)]) + "\n"


def identifier(name):
    return "d_" + "".join(c if c.isalnum() else "_" for c in name)


def draw(results, output):
    """Errors: RuntimeError, in one line."""
    output = pathlib.Path(output)
    if output.suffix not in TERMINALS:
        raise RuntimeError(f"{output}: a plot ends in {' or '.join(TERMINALS)}")
    if missing():
        raise RuntimeError(missing())
    own = results.own_columns()[0]
    others = [name for name in results.peers if name in COLOURS and
              any(results.ratio(row, own, name) for row in results.rows)]
    if not others:
        raise RuntimeError("no other filesystem was measured: nothing to draw")
    with tempfile.NamedTemporaryFile("w", suffix=".gnuplot", encoding="utf-8") as file:
        file.write(script(results, own, others, output))
        file.flush()
        done = subprocess.run(["gnuplot", file.name], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0 or not output.exists():
        raise RuntimeError(f"gnuplot: {' '.join(done.stderr.split()) or 'no picture'}")
