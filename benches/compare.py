"""Joins times of PyTorch and of ours into one table and one JSON file.

    python3 benches/compare.py torch.jsonl ours.jsonl --suite op --out docs/results/h100-ops.json

Ratios above 1 mean that ours is faster. Rows are objects with `name` and either `ms` (lower is better) or
`samples_per_s` (higher is better).
"""

import argparse
import datetime
import json


def read(path):
    """Rows by name, of a report (`dualspeed bench --json`, torch_reference.py) or of one JSON object a line."""
    with open(path) as file:
        text = file.read()
    try:
        rows = json.loads(text)["rows"]
    except (json.JSONDecodeError, KeyError):
        rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {row["name"]: row for row in rows}


def joined(theirs, ours, suite):
    rows = []
    for name, mine in ours.items():
        other = theirs.get(name, {})
        unit = "samples_per_s" if "samples_per_s" in mine else "ms"
        a, b = other.get(unit), mine[unit]
        ratio = None
        if a:
            ratio = round(b / a if unit == "samples_per_s" else a / b, 3)
        row = {"suite": suite, "name": name, "torch": a, "ours": b, "unit": unit, "ratio": ratio}
        for extra in ("tflops", "tflops_4n", "step_ms", "memory_gib", "first_step_s", "peak_gib", "first_ms"):
            if mine.get(extra):
                row[extra] = mine[extra]
            if other.get(extra):
                row["torch_" + extra] = other[extra]
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("torch")
    parser.add_argument("ours")
    parser.add_argument("--suite", default="op")
    parser.add_argument("--device", default="")
    parser.add_argument("--command", default="")
    parser.add_argument("--out")
    args = parser.parse_args()
    rows = joined(read(args.torch), read(args.ours), args.suite)
    print("| name | torch | ours | unit | ratio | TFLOP/s |\n|---|---|---|---|---|---|")
    for row in rows:
        theirs = "" if row["torch"] is None else f"{row['torch']:.3f}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(f"| {row['name']} | {theirs} | {row['ours']:.3f} | {row['unit']} | {ratio} | {row.get('tflops') or row.get('tflops_4n') or ''} |")
    if args.out:
        date = datetime.date.today().isoformat()
        head = {"device": args.device, "date": date, "command": args.command}
        with open(args.out, "w") as out:
            json.dump({**head, "rows": rows}, out, indent=1)
            out.write("\n")


if __name__ == "__main__":
    main()
