#!/usr/bin/env python3
"""The work of `dualspeed bench --suite ops --size 7b` in PyTorch, under the same names.

    python3 benches/torch_ops.py [FILTER] [--json OUT]

Written as a user of PyTorch would: `F.linear`, `F.rms_norm`, SDPA, fused AdamW; DivPrune image by image, as published
(Alvar et al. 2025). A time is the median over blocks of calls between two synchronisations, after a warm-up.
"""

import argparse
import datetime
import json
import sys
import time

import torch
import torch.nn.functional as F

BF16 = torch.bfloat16
DEVICE = "cuda"
ARGS = None
ROWS = []


def report(row):
    """Prints a row, and writes all so far: what is measured survives a limit on time."""
    print(f"{row['name']:<52} {row['ms']:11.4f} {row['spread_ms']:9.4f} {row['tflops'] or 0:9.1f}", flush=True)
    ROWS.append(row)
    if ARGS.json:
        head = {
            "device": torch.cuda.get_device_name(),
            "date": datetime.date.today().isoformat(),
            "command": "python3 " + " ".join(sys.argv),
            "versions": {"torch": torch.__version__},
        }
        with open(ARGS.json, "w") as file:
            json.dump({**head, "rows": ROWS}, file, indent=1)


def rand(*shape, dtype=BF16, grad=False):
    return torch.randn(*shape, device=DEVICE, dtype=dtype).requires_grad_(grad)


def timed(name, flops, call):
    if ARGS.filter not in name:
        return

    def block(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / calls

    first = block(1)
    calls = min(max(int(20 / max(block(3), 1e-3)), 1), 400)
    warm_up = time.perf_counter()
    while time.perf_counter() - warm_up < 0.2:  # a device that was idle clocks higher for a while
        block(calls)
    times = sorted(block(calls) for _ in range(7))
    rate = flops / times[3] / 1e9 if flops else None
    report({"suite": "op", "name": name, "ms": times[3], "spread_ms": times[5] - times[1], "tflops": rate, "first_ms": first})


def products():
    shapes = [
        (8192, 8192, 8192),
        (11264, 4096, 11008),
        (11264, 11008, 4096),
        (3024, 4096, 11008),
        (3024, 4096, 4096),
        (11264, 4096, 4096),
        (11264, 4096, 128),
    ]
    for m, k, n in shapes:
        x, w, g = rand(m, k), rand(n, k), rand(m, n)
        flops = 2 * m * k * n
        timed(f"product {m}x{k}x{n}", flops, lambda: F.linear(x, w))
        timed(f"product {m}x{k}x{n} dx", flops, lambda: g @ w)
        timed(f"product {m}x{k}x{n} dw", flops, lambda: g.t() @ x)


def lora():
    r = 128
    for m, k, n in [(4048, 4096, 4096), (4048, 4096, 11008), (12288, 4096, 11008)]:
        x, w = rand(m, k, grad=True), rand(n, k)
        a, b = rand(r, k, dtype=torch.float32, grad=True), rand(n, r, dtype=torch.float32, grad=True)
        g = rand(m, n)

        def forward():
            with torch.autocast("cuda", dtype=BF16):
                return F.linear(x, w) + F.linear(F.linear(x, a), b) * 2.0

        flops = 2 * (m * k * n + m * k * r + m * r * n)
        timed(f"lora {m}x{k}x{n} r{r} forward", flops, forward)
        y = forward()
        flops += 2 * (m * k * r + m * r * n)
        timed(
            f"lora {m}x{k}x{n} r{r} backward",
            flops,
            lambda: torch.autograd.grad(y, (x, a, b), g, retain_graph=True),
        )


def attention():
    h, d = 32, 128
    for b, t in [(16, 256), (16, 704), (4, 3072), (32, 93)]:
        q, k, v = (rand(b, t, h, d).transpose(1, 2).requires_grad_() for _ in range(3))
        g = rand(b, t, h, d).transpose(1, 2)
        flops = 2 * b * h * t * t * d
        forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
        timed(f"attention b{b} h{h} t{t} d{d} forward", flops, forward)
        o = forward()
        timed(
            f"attention b{b} h{h} t{t} d{d} backward",
            2.5 * flops,
            lambda: torch.autograd.grad(o, (q, k, v), g, retain_graph=True),
        )
    q, k, v = (rand(16, 577, 16, 64).transpose(1, 2) for _ in range(3))
    flops = 4 * 16 * 16 * 577 * 577 * 64
    timed("attention full b16 h16 t577 d64 forward", flops, lambda: F.scaled_dot_product_attention(q, k, v))


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def elementwise():
    x, w = rand(11264, 4096, grad=True), rand(4096)
    g = rand(11264, 4096)
    timed("rms_norm 11264x4096 forward", 0, lambda: F.rms_norm(x, (4096,), w, 1e-5))
    y = F.rms_norm(x, (4096,), w, 1e-5)
    timed("rms_norm 11264x4096 backward", 0, lambda: torch.autograd.grad(y, x, g, retain_graph=True))
    gate, up = rand(11264, 11008, grad=True), rand(11264, 11008, grad=True)
    g2 = rand(11264, 11008)
    timed("swiglu 11264x11008 forward", 0, lambda: F.silu(gate) * up)
    y2 = F.silu(gate) * up
    timed("swiglu 11264x11008 backward", 0, lambda: torch.autograd.grad(y2, (gate, up), g2, retain_graph=True))
    q = rand(16, 704, 32, 128).transpose(1, 2)
    cos, sin = rand(1, 1, 704, 128), rand(1, 1, 704, 128)
    timed("rope 16x32x704x128", 0, lambda: rotate(q, cos, sin))
    x3, w3, b3 = rand(9232, 1024), rand(1024), rand(1024)
    timed("layer_norm 9232x1024 forward", 0, lambda: F.layer_norm(x3, (1024,), w3, b3, 1e-5))
    x4 = rand(9232, 4096)
    timed("quick_gelu 9232x4096 forward", 0, lambda: x4 * torch.sigmoid(1.702 * x4))


def losses():
    n, d, vocab = 2048, 4096, 32000
    h, t, w = rand(n, d, grad=True), rand(n, d), rand(vocab, d) * 0.02
    targets = torch.arange(n, device=DEVICE) * 7919 % vocab

    def ce():
        loss = F.cross_entropy(F.linear(h, w).float(), targets)
        return torch.autograd.grad(loss, h)

    def ce_kl():
        logits = F.linear(h, w).float()
        with torch.no_grad():
            teacher = F.log_softmax(F.linear(t, w).float(), -1)
        kl = F.kl_div(F.log_softmax(logits, -1), teacher, log_target=True, reduction="batchmean")
        return torch.autograd.grad(F.cross_entropy(logits, targets) + kl, h)

    timed("lm_head+ce 2048x4096x32000 forward+backward", 0, ce)
    timed("lm_head+ce+kl 2048x4096x32000 forward+backward", 0, ce_kl)


def divprune(features, keep):
    """One image, as published: the distance matrix, then one pick after the other."""
    unit = features / features.norm(dim=1, keepdim=True)
    distance = 1.0 - unit @ unit.t()
    picked = torch.empty(keep, dtype=torch.long, device=features.device)
    for i in range(keep):
        if i == 0:
            scores = torch.topk(distance, 2, dim=0, largest=False).values[1]
        else:
            rows = torch.index_select(picked, 0, torch.arange(0, i, device=features.device))
            scores = torch.index_select(distance, 0, rows).min(dim=0).values
        picked[i] = torch.argmax(scores)
    return picked


def rest():
    features = rand(16, 576, 4096)
    timed("divprune 16x576x4096 -> 57", 0, lambda: [divprune(image, 57) for image in features])
    block = [(4096, 128), (128, 4096)] * 4 + [(4096, 128), (128, 11008)] * 2 + [(11008, 128), (128, 4096)]
    params = [rand(*shape, dtype=torch.float32, grad=True) for _ in range(32) for shape in block]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(params, lr=1e-5, weight_decay=0.0, fused=True)

    def step():
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    timed("adamw+clip, 448 tensors, 320M", 0, step)


def main():
    global ARGS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filter", nargs="?", default="", help="only names that contain it")
    parser.add_argument("--json", help="also write the rows here")
    ARGS = parser.parse_args()
    products()
    lora()
    attention()
    elementwise()
    losses()
    rest()


if __name__ == "__main__":
    main()
