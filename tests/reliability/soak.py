#!/usr/bin/env python3
"""Trains a tiny model for an hour while things go wrong, and checks that nothing is lost.

    cargo build --release -p dualspeed
    python3 tests/reliability/soak.py --program target/release/dualspeed --out soak [--minutes 60] [--fault-every 120]

Every two minutes one fault: an unreadable picture, a full disk, SIGTERM, SIGKILL, a clock that jumps, a truncated shard of
features, a flipped bit in the newest checkpoint. After each the program is started again with --resume where it ended. Beside it
goes the same run without any fault, until it has come as far. Checked at the end:

 - metrics.jsonl and validation.jsonl hold every step once, in order, and equal those of the run without faults but for times;
 - the program ended as it should after every fault, and said in its log what it should;
 - the memory of the program does not grow: memory.csv has it every five seconds, memory.svg draws it.

The result is in result.json; the exit code is 0 if all of it holds. Linux, Python's standard library only. The full disk is
a tmpfs, for which it has to be root; else the disk is full by a limit on the size of files. The clock is a library that is
loaded before the program's own and needs a C compiler; without one that fault is left out, and said to be.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

CONFIG = """
seed = 0
stage = "single"
steps = 1000000

[data]
workers = 1
on_error = "skip"

[data.train.llava_json]
path = "data/train.json"
image_root = "data/images"
tokenizer = "data/tokenizer.json"
template = "qa"

[data.valid.llava_json]
path = "data/valid.json"
image_root = "data/images"
tokenizer = "data/tokenizer.json"
template = "qa"

[data.features]
cache = "disk"
dir = "{features}"

[model]
isolator_length = 2

[model.vision]
hidden_size = 128
intermediate_size = 512
num_hidden_layers = 5
num_attention_heads = 4
image_size = 168
patch_size = 14
layer_norm_eps = 0.00001
hidden_act = "quick_gelu"
projection_dim = 64
mm_vision_select_layer = -2

[model.text]
hidden_size = 96
num_hidden_layers = 2
num_attention_heads = 4
intermediate_size = 256
vocab_size = 178
tie_word_embeddings = false

[optim]
warmup_ratio = 0.0001

[batch]
size = 2

[checkpoint]
every = 200
keep = 3

[validation]
every = 500
samples = 4
"""

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Seconds that the wall clock is ahead, from a file that may change at any time. */
static int64_t ahead(void) {
    static volatile int64_t *offset;
    if (!offset) {
        const char *path = getenv("SOAK_CLOCK");
        int file = path ? open(path, O_RDONLY) : -1;
        void *page = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
        if (page == MAP_FAILED) return 0;
        offset = page;
    }
    return *offset;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (code == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec time;
    int code = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return code;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""

WORDS = "is there a cat how many things what is at top left which colour is behind the dog red blue green yes no one two three".split()
PICTURES, DAMAGED, RECORDS = 24, 3, 96


def png(rng, side=96):
    """A picture of coloured squares, as PNG."""
    colours = [bytes(rng.randrange(256) for _ in range(3)) for _ in range(9)]
    rows = []
    for y in range(side):
        row = b"".join(colours[3 * (3 * y // side) + 3 * x // side] for x in range(side))
        rows.append(b"\0" + row)
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    packed = zlib.compress(b"".join(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def conversations(rng, picture):
    words = lambda low, high: " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))
    return {
        "image": picture,
        "conversations": [
            {"from": "human", "value": "<image>\n" + words(3, 9)},
            {"from": "gpt", "value": words(1, 5)},
            {"from": "human", "value": words(3, 9)},
            {"from": "gpt", "value": words(1, 5)},
        ],
    }


class Soak:
    def __init__(self, options):
        self.options = options
        self.out = pathlib.Path(options.out).resolve()
        self.rng = random.Random(options.seed)
        self.process = self.other = None
        self.counted = {}
        self.ends = []  # exit codes, in order
        self.problems = []
        self.faults = []
        self.begin = time.time()
        self.segment = 0
        self.mounted = False

    # -- preparation

    def prepare(self):
        if self.out.exists():
            sys.exit(f"{self.out} exists; give another --out, or remove it")
        images = self.out / "data/images"
        images.mkdir(parents=True)
        self.log_path = self.out / "program.log"
        self.log_path.touch()
        self.own_log = open(self.out / "soak.log", "w")
        self.memory = open(self.out / "memory.csv", "w")
        self.memory.write("seconds,segment,pid,rss_kb,peak_kb,files,threads,steps\n")
        rng = random.Random(1)
        self.pictures = [f"{index}.png" for index in range(PICTURES)]
        self.good = {name: png(rng) for name in self.pictures}
        for name, content in self.good.items():
            (images / name).write_bytes(content)
        # The last few are unreadable throughout, each time in another way.
        self.damaged = self.pictures[-DAMAGED:]
        for name in self.damaged:
            self.damage(name)
        train = [{"id": f"r{i}", **conversations(rng, self.pictures[i % PICTURES])} for i in range(RECORDS)]
        valid = [{"id": f"v{i}", **conversations(rng, self.pictures[i])} for i in range(4)]
        (self.out / "data/train.json").write_text(json.dumps(train))
        (self.out / "data/valid.json").write_text(json.dumps(valid))
        self.make_tokenizer()
        self.disk = self.out / "disk"
        self.disk.mkdir()
        if os.geteuid() == 0:
            command = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(self.disk)]
            self.mounted = subprocess.run(command, capture_output=True).returncode == 0
        self.note(f"the disk that fills up is {'a tmpfs' if self.mounted else 'a limit on the size of files'}")
        for name in ("run", "reference"):
            features = f"{'disk' if name == 'run' else '.'}/features-{name}"
            (self.out / f"{name}.toml").write_text(CONFIG.format(features=features))
        self.run_dir, self.features = self.disk / "run", self.disk / "features-run"
        self.make_clock()

    def make_tokenizer(self):
        """The tokenizer of the embedded pictures: an export of a run on them has it."""
        quick = self.out / "quick"
        sets = ["steps=1", "data.train.samples=2", "batch.size=2", "model.isolator_length=0"]
        sets += ["model.text.hidden_size=32", "model.text.num_hidden_layers=1", "model.text.num_attention_heads=2"]
        sets += ["model.text.intermediate_size=64", "model.text.vocab_size=178"]
        (self.out / "quick.toml").write_text("")
        command = [self.options.program, "-q", "train", "--config", "quick.toml", "--out", "quick"]
        subprocess.run(command + [part for text in sets for part in ("--set", text)], cwd=self.out, check=True)
        export = [self.options.program, "-q", "export", "--run", "quick", "--format", "hf", "--out", "quick-hf"]
        subprocess.run(export, cwd=self.out, check=True, capture_output=True)
        shutil.copy(self.out / "quick-hf/tokenizer.json", self.out / "data/tokenizer.json")
        for name in (quick, self.out / "quick-hf"):
            shutil.rmtree(name)
        (self.out / "quick.toml").unlink()

    def make_clock(self):
        self.clock = None
        source, library = self.out / "clock.c", self.out / "clock.so"
        source.write_text(CLOCK)
        compiler = shutil.which("cc") or shutil.which("gcc")
        built = compiler and subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]).returncode == 0
        if not built:
            self.note("no C compiler: the clock does not jump")
            return
        self.offset = self.out / "clock.offset"
        self.offset.write_bytes(struct.pack("<q", 0))
        self.clock = {"LD_PRELOAD": str(library), "SOAK_CLOCK": str(self.offset)}

    # -- the program

    def command(self, config, run_dir):
        if (run_dir / "checkpoints").is_dir() and any((run_dir / "checkpoints").glob("step-*")):
            return [self.options.program, "-q", "train", "--resume", str(run_dir)]
        return [self.options.program, "-q", "train", "--config", f"{config}.toml", "--overwrite", "--out", str(run_dir)]

    def start(self):
        self.segment += 1
        command = self.command("run", self.run_dir)
        with open(self.log_path, "a") as log:
            log.write(f"-- start {self.segment}, {time.time() - self.begin:.0f} s: {' '.join(command[2:])}\n")
        self.mark = self.log_path.stat().st_size
        environment = {**os.environ, **(self.clock or {})}
        # A file that may not grow is an error then, and no signal.
        ignore = lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.out, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=ignore
            )

    def steps(self):
        """Records so far."""
        return self.lines(self.run_dir / "metrics.jsonl")

    def lines(self, path):
        """Lines of a file that grows, or was cut: only what is new is read."""
        try:
            size = path.stat().st_size
            at, count = self.counted.get(path, (0, 0))
            if size < at:
                at, count = 0, 0
            with open(path, "rb") as file:
                file.seek(at)
                while block := file.read(1 << 20):
                    at, count = at + len(block), count + block.count(b"\n")
            self.counted[path] = (at, count)
            return count
        except FileNotFoundError:
            return 0

    def sample(self):
        try:
            status = dict(
                line.split(":", 1) for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            )
            files = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return
        if "VmRSS" not in status:
            return
        rss, peak = (status[key].split()[0] for key in ("VmRSS", "VmHWM"))
        row = [f"{time.time() - self.begin:.0f}", self.segment, self.process.pid, rss, peak, files, status["Threads"].strip()]
        self.memory.write(",".join(map(str, row + [self.steps()])) + "\n")
        self.memory.flush()

    def watch(self, seconds):
        """Lets the program run, and starts it again should it end by itself."""
        until = time.time() + seconds
        while time.time() < until:
            if self.process.poll() is not None:
                self.problem(f"the program ended by itself with {self.process.returncode}")
                self.ends.append(self.process.returncode)
                self.start()
            self.sample()
            time.sleep(min(5, max(0.1, until - time.time())))

    def running(self, patience=180):
        """Waits until the program does steps."""
        before, until = self.steps(), time.time() + patience
        while time.time() < until and self.process.poll() is None:
            # A resumed run first cuts off what its checkpoint does not have.
            if self.steps() > before or self.steps() < before:
                return
            time.sleep(0.2)
        if self.process.poll() is None:
            self.problem(f"no step in {patience} s after start {self.segment}")

    def end(self, expected, patience=120):
        """Waits for the end of the program and compares its exit code."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.problem(f"the program did not end in {patience} s, expected {expected}")
            self.process.kill()
            code = self.process.wait()
        self.ends.append(code)
        if code != expected:
            self.problem(f"the program ended with {code}, expected {expected}")

    def said(self, *words, what, patience=60):
        """Waits until the log since the fault has one of the words: a sample is named when its turn comes."""
        until = time.time() + patience
        while True:
            with open(self.log_path, errors="replace") as log:
                log.seek(self.fault_mark)
                text = log.read()
            if any(word in text for word in words):
                return
            if time.time() > until:
                return self.problem(f"{what}: none of {words} in the log")
            time.sleep(1)

    # -- faults

    def damage(self, name):
        path, content = self.out / "data/images" / name, self.good[name]
        kinds = {
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "no picture": b"this is no picture\n" * 20,
            "a bad byte": content[:60] + bytes([content[60] ^ 255]) + content[61:],
        }
        kind = self.rng.choice([*kinds, "gone"])
        path.unlink(missing_ok=True)
        if kind != "gone":
            path.write_bytes(kinds[kind])
        return kind

    def fault_image(self):
        name = self.rng.choice(self.damaged)
        kind = self.damage(name)
        # Pictures are read when a run is started.
        self.process.send_signal(signal.SIGTERM)
        self.end(143)
        self.start()
        self.running()
        self.said(name, what=f"picture {name} ({kind})")
        return f"{name}: {kind}"

    def fault_disk(self):
        if self.mounted:
            filler = self.disk / "filler"
            with open(filler, "wb") as file:
                try:
                    while True:
                        file.write(b"\0" * (1 << 16))
                        file.flush()
                except OSError:
                    pass
        else:
            size = (self.run_dir / "metrics.jsonl").stat().st_size + 4096
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, size))
        self.end(1, patience=300)
        if self.mounted:
            filler.unlink()
        self.start()
        self.running()
        self.said("disk is full", "No space", "File too large", what="full disk")
        return "full"

    def fault_term(self):
        self.process.send_signal(signal.SIGTERM)
        begin = time.time()
        self.end(143)
        seconds = time.time() - begin
        if seconds > 10:
            self.problem(f"SIGTERM was answered after {seconds:.1f} s")
        self.start()
        self.running()
        self.said("interrupted after step", what="SIGTERM")
        return f"{seconds:.2f} s"

    def fault_kill(self):
        self.process.kill()
        self.end(-signal.SIGKILL)
        self.start()
        self.running()
        return "killed"

    def fault_clock(self):
        if not self.clock:
            return "left out"
        jump = self.rng.choice([-10 * 365 * 86400, -86400, -3600, 3600, 86400, 20 * 365 * 86400])
        with open(self.offset, "r+b") as file:
            file.write(struct.pack("<q", jump))
        # Files from the future, or from long ago.
        for path in self.run_dir.glob("checkpoints/*"):
            os.utime(path, (time.time() + jump, time.time() + jump))
        before = self.steps()
        time.sleep(10)
        if self.process.poll() is not None or self.steps() <= before:
            self.problem(f"the run did not go on after the clock jumped by {jump} s")
        return f"{jump} s"

    def fault_shard(self):
        self.process.send_signal(signal.SIGTERM)
        self.end(143)
        shards = [path for path in self.features.rglob("*") if path.is_file() and path.stat().st_size > 4096]
        if not shards:
            self.problem("there is no shard of features")
            self.start()
            return "none"
        shard = max(shards, key=lambda path: path.stat().st_size)
        size = shard.stat().st_size
        os.truncate(shard, int(size * self.rng.uniform(0.1, 0.9)))
        self.start()
        self.running()
        self.said(shard.name, "shard", what=f"truncated {shard.name}")
        return f"{shard.name}, {size} bytes"

    def fault_bit(self):
        self.process.kill()
        self.end(-signal.SIGKILL)
        newest = max(self.run_dir.glob("checkpoints/step-*"))
        path = newest / self.rng.choice(["trainable.safetensors", "trainable.safetensors", "state.json"])
        content = bytearray(path.read_bytes())
        at = self.rng.randrange(len(content))
        content[at] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)
        self.start()
        self.running()
        self.said(newest.name, what=f"flipped bit in {newest.name}/{path.name}")
        return f"{newest.name}/{path.name}, byte {at}"

    # -- the hour

    def note(self, text):
        line = f"{time.time() - self.begin:7.1f} s  {text}"
        print(line, flush=True)
        self.own_log.write(line + "\n")
        self.own_log.flush()

    def problem(self, text):
        self.problems.append(text)
        self.note(f"PROBLEM: {text}")

    def go(self):
        self.begin = time.time()
        self.start_reference()
        self.start()
        self.running()
        kinds = ["image", "disk", "term", "kill", "clock", "shard", "bit"]
        queue = []
        while time.time() - self.begin < 60 * self.options.minutes:
            self.watch(self.options.fault_every)
            queue = queue or self.rng.sample(kinds, len(kinds))
            kind = queue.pop()
            self.fault_mark = self.log_path.stat().st_size
            steps = self.steps()
            what = getattr(self, f"fault_{kind}")()
            self.faults.append({"seconds": time.time() - self.begin, "kind": kind, "what": what, "steps": steps})
            self.note(f"{kind}: {what}, at {steps} steps")
        self.watch(min(20, self.options.fault_every))
        self.process.send_signal(signal.SIGTERM)
        self.end(143)
        self.seconds = time.time() - self.begin

    def start_reference(self):
        """Starts the same run without any fault."""
        with open(self.out / "reference.log", "w") as log:
            command = self.command("reference", self.out / "reference")
            self.other = subprocess.Popen(command, cwd=self.out, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def reference(self, steps):
        """Waits until the run without faults has come as far; its directory."""
        run_dir = self.out / "reference"
        path = run_dir / "metrics.jsonl"
        while self.other.poll() is None:
            time.sleep(2)
            if self.lines(path) > steps:
                self.other.send_signal(signal.SIGTERM)
                self.other.wait()
        return run_dir

    # -- the end

    def records(self, path):
        """The records of a file, one after the other; an hour has many."""
        if not path.exists():
            return
        with open(path) as file:
            for line in file:
                if not line.endswith("\n"):
                    self.problem(f"{path.name} has a torn end")
                    return
                yield json.loads(line)

    def check(self):
        validations = list(self.records(self.run_dir / "validation.jsonl"))
        steps, odd = [], []
        for record in self.records(self.run_dir / "metrics.jsonl"):
            steps.append(record["step"])
            if not 0 <= record["time"]["step_seconds"] < 300:
                odd.append(record["step"])
        if steps != list(range(len(steps))):
            self.problem(f"metrics.jsonl holds {len(steps)} records of {len(set(steps))} steps, not each once in order")
        if len(steps) < self.options.steps:
            self.problem(f"{len(steps)} steps, {self.options.steps} were to be done")
        at = [record["step"] for record in validations]
        if at != list(range(500, len(steps) + 1, 500)):
            self.problem(f"validation.jsonl holds steps {at[:3]} .. {at[-3:]}, {len(at)} in all")
        if odd:
            self.problem(f"steps {odd[:5]} took less than nothing, or minutes")
        resumes = list(self.records(self.run_dir / "resumes.jsonl"))
        self.note(f"{len(steps)} steps, {len(validations)} validations, {self.segment} starts, {len(resumes)} resumes")
        reference = self.reference(len(steps))
        pairs = zip(*(self.records(run / "metrics.jsonl") for run in (self.run_dir, reference)))
        compared = 0
        for found, expected in pairs:
            if any(found.get(key) != expected.get(key) for key in {*found, *expected} - {"time"}):
                break
            compared += 1
        if compared != len(steps):
            self.problem(f"the curve differs from the run without faults, first at step {compared}")
        expected = [record for record in self.records(reference / "validation.jsonl") if record["step"] <= len(steps)]
        if validations != expected:
            self.problem("the validations differ from those of the run without faults")
        growth = self.growth()
        # Of what a process has once it runs: pools fill up to their size first.
        if growth > 0.1:
            self.problem(f"the memory of the program grows by {100 * growth:.0f} % while it runs")
        self.draw()
        result = {
            "seconds": round(self.seconds), "steps": len(steps), "starts": self.segment, "exit_codes": self.ends,
            "faults": self.faults, "memory_growth": growth, "problems": self.problems,
        }  # fmt: skip
        (self.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        self.note("nothing lost" if not self.problems else f"{len(self.problems)} problems")

    def rows(self):
        lines = (self.out / "memory.csv").read_text().splitlines()[1:]
        return [list(map(int, line.split(","))) for line in lines]

    def growth(self):
        """The largest growth of a process's memory from its twentieth second on, as a share."""
        worst = 0.0
        segments = {}
        for row in self.rows():
            segments.setdefault(row[1], []).append(row)
        for rows in segments.values():
            settled = [row[3] for row in rows if row[0] >= rows[0][0] + 20]
            if len(settled) >= 6:
                third = len(settled) // 3
                first, last = (sum(part) / third for part in (settled[:third], settled[-third:]))
                worst = max(worst, last / first - 1)
        return round(worst, 4)

    def draw(self):
        rows = self.rows()
        if not rows:
            return
        width, height, most, end = 900, 240, max(row[3] for row in rows) * 1.1, max(rows[-1][0], 1)
        x = lambda seconds: 50 + (width - 60) * seconds / end
        y = lambda kb: 10 + (height - 40) * (1 - kb / most)
        colours = {"image": "#06c", "disk": "#c60", "term": "#393", "kill": "#c00", "clock": "#939", "shard": "#066", "bit": "#000"}
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 20}" font-family="sans-serif" font-size="11">']
        parts.append(f'<rect width="{width}" height="{height + 20}" fill="#fff"/>')
        for fault in self.faults:
            at, colour = x(fault["seconds"]), colours[fault["kind"]]
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="10" y2="{height - 30}" stroke="{colour}" opacity=".4"/>')
        by_segment = {}
        for row in rows:
            by_segment.setdefault(row[1], []).append(f"{x(row[0]):.1f},{y(row[3]):.1f}")
        for points in by_segment.values():
            parts.append(f'<polyline fill="none" stroke="#222" stroke-width="1.5" points="{" ".join(points)}"/>')
        for mib in range(0, int(most / 1024) + 1, max(1, int(most / 1024 / 4 / 25) * 25 or 25)):
            parts.append(f'<text x="46" y="{y(mib * 1024) + 4:.1f}" text-anchor="end">{mib}</text>')
        for minute in range(0, end // 60 + 1, max(1, end // 600)):
            parts.append(f'<text x="{x(60 * minute):.1f}" y="{height - 12}" text-anchor="middle">{minute}</text>')
        parts.append(f'<text x="10" y="{height + 12}">Memory (resident, MiB) over minutes. Faults: ')
        parts.append(" ".join(f'<tspan fill="{colour}">{kind}</tspan>' for kind, colour in colours.items()) + "</text></svg>")
        (self.out / "memory.svg").write_text("\n".join(parts) + "\n")

    def clean(self):
        for process in (self.process, self.other):
            if process and process.poll() is None:
                process.kill()
                process.wait()
        if self.mounted:
            kept = self.out / "run"
            if self.run_dir.exists() and not kept.exists():
                shutil.copytree(self.run_dir, kept)
            subprocess.run(["umount", str(self.disk)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True, type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=50_000, help="steps that have to be done")
    parser.add_argument("--fault-every", type=float, default=120, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    soak = Soak(parser.parse_args())
    try:
        soak.prepare()
        soak.go()
        soak.check()
    finally:
        soak.clean()
    sys.exit(1 if soak.problems else 0)


if __name__ == "__main__":
    main()
