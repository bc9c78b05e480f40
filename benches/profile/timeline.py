"""Where a step's time goes: reads what timeline.c recorded and looks at the steps between calls of the optimiser.
Lines of the kind `memory`, what the program took from the device and gave back, are left out.

    python3 benches/profile/timeline.py out.tsv [--end adamw] [--top 20]
"""

import argparse
import collections
import re


def merge(spans):
    """Union of intervals, ascending."""
    merged = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


def table(rows, total, top):
    """Calls, milliseconds, share and name, by time."""
    sums = collections.defaultdict(lambda: [0, 0, 0])
    for start, end, size, name in rows:
        entry = sums[name]
        entry[0] += 1
        entry[1] += end - start
        entry[2] += size
    for name, (calls, time, size) in sorted(sums.items(), key=lambda item: -item[1][1])[:top]:
        gib = f"{size / 2**20:9.1f} MiB" if size else ""
        print(f"{calls:7d} {time / 1e6:9.2f} ms {100 * time / total:5.1f} %  {name[:110]} {gib}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--end", default="adamw", help="kernel that ends a step")
    parser.add_argument("--steps", type=int, default=2, help="steps looked at, the last ones")
    parser.add_argument("--top", type=int, default=25)
    args = parser.parse_args()
    device, driver = [], []
    with open(args.path) as lines:
        for line in lines:
            kind, start, end, place, size, name = line.rstrip("\n").split("\t", 5)
            if kind == "memory":
                continue
            name = re.sub(r"_f_.*|_[0-9a-f]{16,}", "", name)
            entry = (int(start), int(end), int(size), name, place)
            (driver if kind == "driver" else device).append(entry)
    device.sort()
    ends = [entry[1] for entry in device if args.end in entry[3]]
    steps = []
    copies = ("copy", "memset")
    for end in ends:  # between launches of one optimiser step there are copies only
        if steps and end - steps[-1] < 50e6 and not any(
            steps[-1] < e[0] < end and args.end not in e[3] and not e[3].startswith(copies) for e in device
        ):
            steps[-1] = end
        else:
            steps.append(end)
    first, last = steps[-1 - args.steps], steps[-1]
    total = last - first
    inside = [e for e in device if first < e[0] <= last]
    busy = merge([e[:2] for e in inside])
    time = sum(end - start for start, end in busy)
    print(f"{args.steps} steps, {total / 1e6 / args.steps:.1f} ms each, device busy {100 * time / total:.1f} %")
    print(f"\nOn the device ({len(inside)} launches and copies):")
    table([e[:4] for e in inside], total, args.top)
    print("\nDriver calls:")
    table([(s, e, n, f"{name} [{place}]") for s, e, n, name, place in driver if first < s <= last], total, args.top)
    print("\nLongest waits of the device, with what ran before and after:")
    gaps = [(b[0] - a[1], a[1], b[0]) for a, b in zip(busy, busy[1:])]
    starts = {e[0]: e[3] for e in inside}
    ends = {e[1]: e[3] for e in inside}
    for gap, before, after in sorted(gaps, reverse=True)[:12]:
        at = (before - first) / 1e6
        during = collections.Counter()
        for s, e, _, name, _ in driver:
            if s < after and e > before:
                during[name] += min(e, after) - max(s, before)
        calls = ", ".join(f"{n} {t / 1e6:.2f}" for n, t in during.most_common(3))
        print(f"{gap / 1e6:9.3f} ms at {at:8.1f}: {ends.get(before, '?')[:45]} > {starts.get(after, '?')[:45]} | {calls}")
    histogram = collections.Counter()
    for gap, *_ in gaps:
        histogram[next((n for n in (5, 20, 100, 1000, 10000, 10**9) if gap / 1e3 < n))] += gap
    print("waits by length:", ", ".join(f"<{n} us {t / 1e6:.1f} ms" for n, t in sorted(histogram.items())))


if __name__ == "__main__":
    main()
