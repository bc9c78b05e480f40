"""Kills a resumed run at one system call after the other, resumes it, and compares it with a run that nothing happened to.

Needs strace, and permission to trace.

    python3 tests/reliability/syscall_kills.py target/release/dualspeed --work /tmp/kills
"""

import sys

from runs import Runs, arguments, differences, report

SETTINGS = ["steps=30", "checkpoint.every=1", "checkpoint.keep=1"]
# System call, the file of the run it is about, and how many times it may come before the kill.
POINTS = [
    ("write", "metrics.jsonl", 3),
    ("openat", "metrics.jsonl", 3),
    ("rename", None, 5),
    ("unlinkat", None, 10),
    ("fsync", None, 10),
    ("mkdir", None, 5),
    ("ftruncate", None, 2),
    ("fdatasync", None, 4),
    ("write", "validation.jsonl", 2),
    ("openat", "validation.jsonl", 2),
]


def main():
    args = arguments(__doc__.splitlines()[0]).parse_args()
    runs = Runs(args)
    strace = ["strace", "-f", "-o", "/dev/null"]

    runs.remove("whole")
    ended = runs.run(runs.train("whole", SETTINGS))
    if ended.returncode:
        sys.exit(f"the run that nothing happens to failed: {ended.stderr}")
    # A run killed in its middle, while a checkpoint is put in its place.
    runs.remove("killed")
    kill = ["-e", "trace=rename", "-e", "inject=rename:signal=KILL:when=25"]
    runs.run(strace + kill + runs.train("killed", SETTINGS))
    print("killed run:", runs.checkpoints("killed"), runs.lines("killed"), "records\n")

    rows = []
    for call, file, count in POINTS:
        for number in range(1, count + 1):
            runs.copy("killed", "again")
            watch = ["-P", str(runs.path("again") / file), "-P", f"again/{file}"] if file else []
            kill = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
            died = runs.run(strace + watch + kill + runs.resume("again")).returncode != 0
            row = {"call": call, "file": file, "number": number, "died": died, "records": runs.lines("again"),
                   "checkpoints": runs.checkpoints("again")}
            resumed = runs.run(runs.resume("again"))
            if resumed.returncode:
                found = [f"resume failed: {resumed.stderr.strip()}"]
            else:
                found = differences(runs.path("whole"), runs.path("again"))
            row.update(equal=not found, differences=found)
            rows.append(row)
            print(f"{'equal' if row['equal'] else 'OTHER':6}{call:10} {file or '':17} {number:2}  "
                  f"{'killed' if died else 'not reached':11}  {row['records']:3} records, {', '.join(row['checkpoints'])}"
                  f"  {'; '.join(found)}", flush=True)
    died = sum(row["died"] for row in rows)
    print(f"\nkilled: {died} of {len(rows)}")
    return report(rows, args)


if __name__ == "__main__":
    sys.exit(main())
