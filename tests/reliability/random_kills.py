"""Kills runs at random times, several times each, resumes them, and compares them with a run that nothing happened to.

    python3 tests/reliability/random_kills.py target/release/dualspeed --work /tmp/kills --kills 20
"""

import random
import subprocess
import sys
import time

from runs import Runs, arguments, differences, report

# Of one run, at most.
KILLS = 3


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how many times a run is killed, in all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    runs, chance = Runs(args), random.Random(args.seed)

    runs.remove("whole")
    begin = time.time()
    ended = runs.run(runs.train("whole"))
    if ended.returncode:
        sys.exit(f"the run that nothing happens to failed: {ended.stderr}")
    seconds = time.time() - begin
    print(f"whole run: {runs.lines('whole')} records in {seconds:.1f} s\n")

    rows, killed = [], 0
    while killed < args.kills:
        runs.remove("part")
        command, reached, error = runs.train("part"), [], ""
        while True:
            last = len(reached) == KILLS or killed == args.kills
            process = runs.popen(command)
            try:
                _, error = process.communicate(timeout=None if last else chance.uniform(0.05, 0.9) * seconds)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            killed += 1
            checkpoints = runs.checkpoints("part")
            reached.append((runs.lines("part"), checkpoints[-1:] and checkpoints[-1]))
            # Before the first checkpoint there is nothing to go on from.
            if any(name.startswith("step-") for name in checkpoints):
                command = runs.resume("part")
            else:
                command = runs.train("part", overwrite=True)
        if process.returncode:
            found = [f"ended with {process.returncode}: {error.strip()}"]
        else:
            found = differences(runs.path("whole"), runs.path("part"))
        rows.append({"kills": reached, "equal": not found, "differences": found})
        places = ", ".join(f"record {records} ({checkpoint or 'no checkpoint'})" for records, checkpoint in reached)
        print(f"{'OTHER' if found else 'equal':6} killed at {places or '-'}  {'; '.join(found)}", flush=True)
    print(f"\nkills: {killed}")
    return report(rows, args)


if __name__ == "__main__":
    sys.exit(main())
