#!/usr/bin/env python3
"""Joins times of PyTorch and of ours into one table and one JSON file, and prints DualSpeed's speed-ups.

    python3 benches/compare.py --ours ours-ops.json ours-steps.json --torch torch-ops.jsonl torch-steps.json \\
        [--out docs/results/h100.json]

Ours: what `dualspeed bench --json` writes, of any suites. PyTorch's: what torch_ops.py and torch_reference.py write.
Rows of one name are one row of the table; ratios above 1 mean that ours is faster. Steps count in samples/s, operations
and pruners in ms.
"""

import argparse
import datetime
import json
import os
import sys

EXTRAS = ("ms", "spread_ms", "tokens_per_s", "tflops", "tflops_4n", "memory_gib", "first_step_s", "first_ms", "parts_ms",
          "recomputed_blocks", "checkpointing")
# Suites of ours and what they are in the table; the growth of costs is a plot, not a comparison.
SUITES = {"step": "step", "op": "op", "prune": "op"}


def read(path):
    """A report `{"rows": [...], ...}`, also from one JSON object a line."""
    try:
        with open(path) as file:
            text = file.read()
    except OSError as error:
        sys.exit(f"compare.py: cannot read {path}: {error.strerror}")
    try:
        report = json.loads(text)
        if "rows" in report:
            return report
    except json.JSONDecodeError:
        pass
    try:
        rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    except json.JSONDecodeError as error:
        sys.exit(f"compare.py: {path} is no JSON, nor one object a line: {error}; give what --json wrote")
    if not rows or any("name" not in row for row in rows):
        sys.exit(f"compare.py: {path} holds no rows with names; give what --json wrote")
    return {"rows": rows}


def gather(paths):
    """Reports' heads, and rows by name."""
    reports, rows = [], {}
    for path in paths:
        report = read(path)
        reports.append(report)
        for row in report["rows"]:
            if row["name"] in rows:
                print(f"compare.py: {row['name']!r} is there twice, last in {path}, which counts", file=sys.stderr)
            rows[row["name"]] = row
    return reports, rows


def first(reports, key):
    return next((report[key] for report in reports if report.get(key)), "")


def joined(theirs, ours):
    rows = []
    for name, mine in ours.items():
        suite = SUITES.get(mine.get("suite"))
        other = theirs.get(name, {})
        unit, column = ("samples/s", "samples_per_s") if suite == "step" else ("ms", "ms")
        a, b = other.get(column), mine.get(column)
        if suite is None or b is None:
            continue
        ratio = None
        if a:
            ratio = round(b / a if suite == "step" else a / b, 3)
        row = {"name": name, "torch": a, "ours": b, "unit": unit, "ratio": ratio, "suite": suite}
        for extra in EXTRAS:
            for prefix, source in (("", mine), ("torch_", other)):
                if extra != column and source.get(extra) is not None:
                    row[prefix + extra] = source[extra]
        rows.append(row)
    for name in theirs:
        if name not in ours:
            print(f"compare.py: only PyTorch has {name!r}", file=sys.stderr)
    return rows


def number(value):
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def table(rows):
    print("| name | PyTorch | ours | unit | ratio | ours, TFLOP/s | ours, GiB |\n|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        flops = number(row.get("tflops_4n") or row.get("tflops"))
        cells = [row["name"], number(row["torch"]), number(row["ours"]), row["unit"], ratio, flops, number(row.get("memory_gib"))]
        print("| " + " | ".join(cells) + " |")


def speedups(ours, ratio):
    """Fast-slow training over training with all tokens, from steps with and without pruning."""
    ms = {name: row["ms"] for name, row in ours.items() if row.get("suite") == "step" and row.get("ms")}
    found = []

    def add(what, full, parts):
        if full in ms and all(name in ms for name, _ in parts):
            ours = sum(share * ms[name] for name, share in parts)
            found.append((what, ms[full], ours, ms[full] / ours))

    add("stage 1, features cached", "stage 1 full", [("stage 1 fast", 1.0)])
    add("stage 1, with the tower", "stage 1 full, tower", [("stage 1 fast, tower", 1.0)])
    for what, case in (("LLaVA-1.5 stage 2", "stage 2"), ("NeXT, flat", "next"), ("NeXT, spatial_unpad", "next unpad")):
        fast, slow = f"{case} fast, tower", f"{case} slow, tower"
        add(f"{what}, r = {ratio}, with the tower", f"{case} full, tower", [(fast, 1 - ratio), (slow, ratio)])
    if found:
        print("\n| DualSpeed over all tokens | full, ms | DualSpeed, ms | speed-up |\n|---|---|---|---|")
        for what, full, dual, speedup in found:
            print(f"| {what} | {full:.0f} | {dual:.0f} | {speedup:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--torch", nargs="*", default=[], metavar="FILE")
    parser.add_argument("--slow-mode-ratio", type=float, default=0.1)
    parser.add_argument("--device", help="overrides the device's name that the files carry")
    parser.add_argument("--command", help="overrides the commands that the files carry")
    parser.add_argument("--out", help="the JSON file to write")
    args = parser.parse_args()
    (our_reports, ours), (their_reports, theirs) = gather(args.ours), gather(args.torch)
    rows = joined(theirs, ours)
    table(rows)
    speedups(ours, args.slow_mode_ratio)
    if args.out:
        commands = [report["command"] for report in our_reports + their_reports if report.get("command")]
        head = {
            # PyTorch knows the GPU by its full name.
            "device": args.device or first(their_reports, "device") or first(our_reports, "device"),
            "date": first(our_reports, "date") or datetime.date.today().isoformat(),
            "command": args.command or "; ".join(commands),
        }
        os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
        with open(args.out, "w") as out:
            json.dump({**head, "rows": rows}, out, indent=1)
            out.write("\n")


if __name__ == "__main__":
    main()
