"""Runs of a `dualspeed` program, and whether one ended as another did: records, validations, weights, state."""

import argparse
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

CONFIG = Path(__file__).with_name("tiny.toml")


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("program", type=Path, help="the dualspeed program to try")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs; those in it are replaced")
    parser.add_argument("--backend", default="ndarray")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to the runs")
    parser.add_argument("--json", type=Path, help="also write the table there")
    return parser


class Runs:
    """The program in its folder."""

    def __init__(self, args):
        self.program, self.backend, self.settings = args.program.resolve(), args.backend, args.set
        self.work = args.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)

    def train(self, name, settings=(), overwrite=False):
        command = [self.program, "train", "--config", CONFIG, "--out", name, "--quiet", "--backend", self.backend]
        for text in [*settings, *self.settings]:
            command += ["--set", text]
        return [str(part) for part in command] + (["--overwrite"] if overwrite else [])

    def resume(self, name):
        return [str(self.program), "train", "--resume", name, "--quiet", "--backend", self.backend]

    def run(self, command):
        return subprocess.run(command, cwd=self.work, capture_output=True, text=True)

    def popen(self, command):
        return subprocess.Popen(command, cwd=self.work, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def path(self, name):
        return self.work / name

    def remove(self, name):
        shutil.rmtree(self.path(name), ignore_errors=True)

    def copy(self, source, target):
        self.remove(target)
        shutil.copytree(self.path(source), self.path(target))

    def checkpoints(self, name):
        folder = self.path(name) / "checkpoints"
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def lines(self, name, file="metrics.jsonl"):
        path = self.path(name) / file
        return path.read_bytes().count(b"\n") if path.exists() else 0


def records(run, file):
    """The records of a log without what depends on the clock."""
    path = run / file
    if not path.exists():
        return []
    text = path.read_text()
    if text and not text.endswith("\n"):
        raise ValueError(f"{file} has a torn end")
    found = [json.loads(line) for line in text.splitlines()]
    for record in found:
        record.pop("time", None)
    return found


def state(checkpoint):
    found = json.loads((checkpoint / "state.json").read_text())
    for key in ("train_seconds", "time"):
        found["totals"].pop(key, None)
    # How often and how many checkpoints are kept is free.
    found["config"].pop("checkpoint", None)
    return found


def newest(run):
    found = sorted(path for path in (run / "checkpoints").iterdir() if path.name.startswith("step-"))
    return found[-1]


def differences(whole, part):
    """What is another in the run `part` than in the run `whole`."""
    found = []
    for file in ("metrics.jsonl", "validation.jsonl"):
        try:
            a, b = records(whole, file), records(part, file)
        except ValueError as error:
            found.append(f"{file}: {error}")
            continue
        if a != b:
            steps_a, steps_b = ([record["step"] for record in log] for log in (a, b))
            missing = sorted(set(steps_a) - set(steps_b))
            twice = len(steps_b) - len(set(steps_b))
            other = [x["step"] for x, y in zip(a, b) if x != y][:1] if steps_a == steps_b else "-"
            found.append(f"{file}: {len(missing)} missing, {twice} twice, first other {other}")
    a, b = newest(whole), newest(part)
    if a.name != b.name:
        found.append(f"last checkpoint {b.name}, expected {a.name}")
    digest = lambda path: hashlib.sha256((path / "trainable.safetensors").read_bytes()).hexdigest()
    if digest(a) != digest(b):
        found.append("weights or moments")
    x, y = state(a), state(b)
    found += [f"state: {key}" for key in x if x[key] != y.get(key)]
    left = [path.name for path in (part / "checkpoints").iterdir() if path.name.startswith(".")]
    found += [f"left over: {left}"] if left else []
    if (part / "run.lock").exists():
        found.append("left over: run.lock")
    return found


def report(rows, args):
    """Prints how many runs were equal; the exit code says whether all were."""
    equal = sum(row["equal"] for row in rows)
    print(f"\nequal: {equal} of {len(rows)}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if equal == len(rows) else 1
