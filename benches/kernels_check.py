"""Checks the CUDA kernels of dualspeed-ops against PyTorch, and times both. No Rust involved.

    python3 benches/kernels_check.py [--only dropout,elementwise,losses,points,adamw,attention] [--no-bench] [--json FILE]

Compiles crates/dualspeed-ops/src/cuda/kernels/*.cu with NVRTC for the device at hand. The reference is the same function
in float64 of the same (rounded) inputs. Errors are ||out - ref|| / ||ref||; outputs are poisoned with NaN first. Exit code 1
where an error exceeds its tolerance. Times are medians over replays, in microseconds; ratio > 1: ours is faster.
"""

import argparse
import ctypes
import glob
import json
import math
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "crates", "dualspeed-ops", "src", "cuda", "kernels")
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# Rounding of the result alone has a relative norm of about 1.7e-3 in bf16 and 2e-4 in f16; of a single value up to 3.9e-3, 4.9e-4.
ROUNDED = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
# With the probabilities and their gradients rounded on the way into the second product.
ATTENTION = {torch.float32: 5e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}

failures, rows = [], []


# ---- Compiling and launching.


def library(name, patterns):
    import nvidia

    for base in list(nvidia.__path__):
        for pattern in patterns:
            for path in sorted(glob.glob(os.path.join(base, pattern))):
                return ctypes.CDLL(path)
    return ctypes.CDLL(name)


nvrtc = library("libnvrtc.so", ["cu13/lib/libnvrtc.so.*", "cuda_nvrtc/lib/libnvrtc.so.*"])
cuda = ctypes.CDLL("libcuda.so.1")


def ok(code, what):
    if code != 0:
        raise RuntimeError(f"{what}: error {code}")


class Int(ctypes.c_int):
    """A 32-bit argument; plain Python integers are 64 bits wide."""


class Strides(ctypes.Structure):
    _fields_ = [("b", ctypes.c_longlong), ("h", ctypes.c_longlong), ("s", ctypes.c_longlong)]


class Shape(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int) for name in ("b", "hq", "hkv", "sq", "sk", "causal")]
        + [("scale", ctypes.c_float), ("reserved", ctypes.c_int)]
        + [(name, ctypes.c_void_p) for name in ("key_lengths", "cu_q", "cu_k")]
        + [("lse_b", ctypes.c_longlong), ("lse_h", ctypes.c_longlong)]
    )


class Module:
    """One .cu file; `edit` replaces text in it, for tuning."""

    def __init__(self, file, *options, edit=()):
        files = ["prelude", "attention", file] if file == "attention_sm90" else ["prelude", file]
        source = "".join(open(os.path.join(ROOT, part + ".cu")).read() for part in files)
        for old, new in edit:
            assert old in source, old
            source = source.replace(old, new)
        torch.zeros(1, device="cuda") # makes the context current
        major, minor = torch.cuda.get_device_capability()
        arch = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
        program = ctypes.c_void_p()
        ok(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"k.cu", 0, None, None), "create")
        options = [f"--gpu-architecture={arch}", "--std=c++17", *options]
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        began = time.time()
        code = nvrtc.nvrtcCompileProgram(program, len(options), array)
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        if code != 0:
            raise RuntimeError(log.value.decode())
        ok(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "size")
        cubin = ctypes.create_string_buffer(size.value)
        ok(nvrtc.nvrtcGetCUBIN(program, cubin), "cubin")
        self.module = ctypes.c_void_p()
        ok(cuda.cuModuleLoadData(ctypes.byref(self.module), cubin), "load")
        self.functions = {}
        print(f"compiled {file} {' '.join(options[2:])} for {arch} in {time.time() - began:.1f} s", flush=True)

    def constant(self, name, count):
        at, size = ctypes.c_uint64(), ctypes.c_size_t()
        ok(cuda.cuModuleGetGlobal_v2(ctypes.byref(at), ctypes.byref(size), self.module, name.encode()), name)
        out = (ctypes.c_int * count)()
        ok(cuda.cuMemcpyDtoH_v2(out, at, ctypes.c_size_t(4 * count)), name)
        return list(out)

    def __call__(self, name, grid, block, *args, shared=0):
        if name not in self.functions:
            function = ctypes.c_void_p()
            ok(cuda.cuModuleGetFunction(ctypes.byref(function), self.module, name.encode()), name)
            if shared > 48 * 1024:
                ok(cuda.cuFuncSetAttribute(function, 8, shared), name)
            self.functions[name] = function
        values = []
        for arg in args:
            if isinstance(arg, torch.Tensor):
                values.append(ctypes.c_uint64(arg.data_ptr()))
            elif arg is None:
                values.append(ctypes.c_uint64(0))
            elif isinstance(arg, (ctypes._SimpleCData, ctypes.Structure)):
                values.append(arg)
            elif isinstance(arg, int):
                values.append(ctypes.c_longlong(arg))
            else:
                values.append(ctypes.c_float(arg))
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        x, y, z = (tuple(grid) + (1, 1))[:3] if isinstance(grid, (tuple, list)) else (grid, 1, 1)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        ok(cuda.cuLaunchKernel(self.functions[name], x, y, z, block, 1, 1, shared, stream, pointers, None), name)


# ---- Inputs, checks, times.


def rand(*shape, dtype=torch.float32, scale=1.0, offset=0):
    """Normal values; `offset` elements into a buffer, so that the address is not a multiple of 16."""
    n = math.prod(shape)
    x = (torch.randn(n + offset, device="cuda") * scale).to(dtype)
    return x[offset:].view(*shape)


def poison(*shape, dtype=torch.float32, offset=0):
    return torch.full((math.prod(shape) + offset,), float("nan"), device="cuda", dtype=dtype)[offset:].view(*shape)


def check(name, out, ref, tolerance):
    out, ref = out.double(), ref.double()
    error = ((out - ref).norm() / ref.norm().clamp_min(1e-30)).item() if ref.norm() > 0 else out.abs().max().item()
    good = error <= tolerance
    if not good:
        failures.append(f"{name}: {error:.2e} > {tolerance:.0e}")
    return f"{error:.1e}" if good else f"*{error:.1e}*"


def line(name, *parts):
    print(f"  {name:44s} {' '.join(parts)}", flush=True)


def times(f, replays=20, repeat=5):
    """Median microseconds of f, replayed from a graph of `repeat` calls."""
    for _ in range(2):
        f()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeat):
            f()
    graph.replay()
    out = []
    for _ in range(replays):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        b.synchronize()
        out.append(a.elapsed_time(b) * 1000 / repeat)
    return statistics.median(out)


def report(name, ours, theirs, note=""):
    rows.append({"name": name, "torch": theirs, "ours": ours, "unit": "us", "ratio": theirs / ours, "suite": "op"})
    print(f"  {name:44s} torch {theirs:9.1f}  ours {ours:9.1f}  ratio {theirs / ours:5.2f}  {note}", flush=True)


def ceil(a, b):
    return -(-a // b)


# ---- Norms, activations, rotary embedding, casts.


def norm_block(d, dtype):
    return min(512, ceil(ceil(d * dtype.itemsize, 64), 32) * 32)


def norm(k, x, w, b=None, residual=None, eps=1e-5):
    name = "rms_norm" if b is None else "layer_norm"
    n, d = x.shape
    y, total = torch.full_like(x, float("nan")), torch.full_like(x, float("nan")) if residual is not None else None
    weights = (w,) if b is None else (w, b)
    k(f"{name}_forward_{NAMES[x.dtype]}", n, norm_block(d, x.dtype), x, residual, *weights, total, y, n, d, eps,
      Int(w.dtype == torch.float32))
    return y, total


def norm_backward(k, x, w, g, centred, residual=None, eps=1e-5, stats=True):
    n, d = x.shape
    t = NAMES[x.dtype]
    dx, scale = torch.full_like(x, float("nan")), poison(n) if stats else None
    mean = poison(n) if centred and stats else None
    extra = (mean, scale) if centred else (scale,)
    name = "layer_norm" if centred else "rms_norm"
    k(f"{name}_backward_{t}", n, min(512, 2 * norm_block(d, x.dtype)), x, w, g, residual, dx, *extra, n, d, eps,
      Int(w.dtype == torch.float32))
    if not stats:
        return dx, None, None
    splits = max(1, min(ceil(528, ceil(d, 64)), ceil(n, 32)))
    per = ceil(n, splits)
    splits = ceil(n, per)
    pw, pb, dw, db = poison(splits, d), poison(splits, d), poison(d, dtype=x.dtype), poison(d, dtype=x.dtype)
    k(f"column_sums_{t}", (ceil(d, 64), splits), 256, g, x, mean, scale, pw, pb, n, d, per)
    k(f"column_sums_finish_{t}", ceil(d, 256), 256, pw, dw, splits, d)
    k(f"column_sums_finish_{t}", ceil(d, 256), 256, pb, db, splits, d)
    return dx, dw, db


def reference_norm(x, w, b, residual, g, eps=1e-5):
    rounded = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    x, w = rounded.double().requires_grad_(), w.double().requires_grad_()
    b64 = None if b is None else b.double().requires_grad_()
    y = F.rms_norm(x, x.shape[-1:], w, eps) if b is None else F.layer_norm(x, x.shape[-1:], w, b64, eps)
    y.backward(g.double())
    return rounded, y.detach(), x.grad, w.grad, None if b is None else b64.grad


def check_elementwise(bench):
    k = Module("elementwise")
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    for dtype in NAMES:
        t, tol = NAMES[dtype], ROUNDED[dtype]
        for n, d, offset in ((37, 4096, 0), (1000, 1024, 0), (5, 77, 0), (33, 129, 1), (3, 11008, 0), (1, 1, 0), (7, 20480, 1), (300, 64, 0)):
            for centred in (False, True):
                x, g = rand(n, d, dtype=dtype, offset=offset) + 0.5, rand(n, d, dtype=dtype)
                x = x if offset == 0 else rand(n, d, dtype=dtype, offset=offset)
                residual = rand(n, d, dtype=dtype) if n % 2 else None
                w = rand(d, dtype=dtype if n % 3 else torch.float32) + 1.0
                b = rand(d, dtype=w.dtype) if centred else None
                rounded, y, dx, dw, db = reference_norm(x, w, b, residual, g)
                out, total = norm(k, x, w, b, residual)
                parts = [check("y", out, y, tol)]
                if residual is not None:
                    parts.append(check("sum", total, rounded, 0.0))
                gx, gw, gb = norm_backward(k, rounded, w, g, centred, residual)
                if d > 1:
                    parts.append(check("dx", gx, dx + (residual.double() if residual is not None else 0), tol * 2))
                    parts.append(check("dw", gw, dw, max(tol, 1e-5)))
                parts.append(check("dbias", gb, g.double().sum(0), max(tol, 1e-5)))
                line(f"{'layer' if centred else 'rms'}_norm {t} {n}x{d} offset {offset}", *parts)
        for n, offset in ((1, 0), (4097, 0), (100003, 1)):
            x, g = (rand(n, dtype=dtype, scale=2.0, offset=offset) for _ in range(2))
            x64 = x.double().requires_grad_()
            grid = min(ceil(n, 256 * 16 // dtype.itemsize), 8 * sms)
            parts = []
            for name, f in (("gelu", F.gelu), ("quick_gelu", lambda v: v * torch.sigmoid(1.702 * v))):
                y, dx = poison(n, dtype=dtype), poison(n, dtype=dtype, offset=offset)
                k(f"{name}_forward_{t}", grid, 256, x, y, n)
                k(f"{name}_backward_{t}", grid, 256, x, g, dx, n)
                ref = f(x64)
                (grad,) = torch.autograd.grad(ref, x64, g.double())
                parts += [check(name, y, ref.detach(), tol), check(name, dx, grad, tol)]
            for other in NAMES:
                y = poison(n, dtype=other)
                k(f"cast_{t}_{NAMES[other]}", grid, 256, x, y, n, 0.37)
                parts.append(check("cast", y, (x.float() * torch.tensor(0.37)).to(other), 0.0))
            line(f"gelu, casts {t} {n} offset {offset}", *parts)
        for n, d, stride in ((3, 11008, 22016), (65, 77, 77), (70000, 8, 24)):
            both = rand(n, stride, dtype=dtype)
            gate, up = both[:, :d], (both[:, d:2 * d] if stride >= 2 * d else rand(n, d, dtype=dtype))
            g = rand(n, d, dtype=dtype)
            g64, u64 = gate.double().requires_grad_(), up.double().requires_grad_()
            ref = F.silu(g64) * u64
            ref.backward(g.double())
            y, grad = poison(n, d, dtype=dtype), poison(n, stride, dtype=dtype)
            dgate, dup = grad[:, :d], (grad[:, d:2 * d] if stride >= 2 * d else poison(n, d, dtype=dtype))
            grid = (ceil(d, 256 * 16 // dtype.itemsize), min(n, 65535))
            k(f"swiglu_forward_{t}", grid, 256, gate, gate.stride(0), up, up.stride(0), y, n, d)
            k(f"swiglu_backward_{t}", grid, 256, gate, gate.stride(0), up, up.stride(0), g, dgate, dgate.stride(0), dup, dup.stride(0), n, d)
            line(f"swiglu {t} {n}x{d} stride {stride}", check("y", y, ref.detach(), tol), check("dgate", dgate, g64.grad, tol),
                 check("dup", dup, u64.grad, tol))
        for b, h, s, d, bshd, per_row in ((2, 3, 5, 128, True, True), (2, 4, 7, 64, False, False), (1, 2, 3, 10, True, False), (3, 5, 9, 80, True, True)):
            x = rand(b, s, h, d, dtype=dtype).transpose(1, 2) if bshd else rand(b, h, s, d, dtype=dtype)
            y = poison(b, h, s, d, dtype=dtype)
            angle = rand(b if per_row else 1, s, d // 2)
            cos, sin = angle.cos(), angle.sin()
            parts = []
            for direction in (1.0, -1.0):
                k(f"rope_{t}", b * s, min(256, ceil(ceil(h * d * dtype.itemsize, 128), 32) * 32), x, cos, sin, y, b, h, s, d, *x.stride()[:3], *y.stride()[:3],
                  s * (d // 2) if per_row else 0, direction)
                c, sn = cos.double().unsqueeze(1), sin.double().unsqueeze(1) * direction
                left, right = x.double().chunk(2, -1)
                parts.append(check("rope", y, torch.cat([left * c - right * sn, right * c + left * sn], -1), tol))
            line(f"rope {t} b{b} h{h} s{s} d{d}", *parts)
    if not bench:
        return
    n, d, f = 11264, 4096, 11008
    t = torch.bfloat16
    x, g, w, r = rand(n, d, dtype=t), rand(n, d, dtype=t), rand(d, dtype=t), rand(n, d, dtype=t)
    y, total = torch.empty_like(x), torch.empty_like(x)
    block = norm_block(d, t)
    report("rms_norm forward 11264x4096", times(lambda: k("rms_norm_forward_bf16", n, block, x, None, w, None, y, n, d, 1e-5, Int(0))),
           times(lambda: F.rms_norm(x, (d,), w, 1e-5)))
    def torch_add_norm():
        s = x + r
        return F.rms_norm(s, (d,), w, 1e-5)
    report("add + rms_norm forward", times(lambda: k("rms_norm_forward_bf16", n, block, x, r, w, total, y, n, d, 1e-5, Int(0))), times(torch_add_norm))
    norm_grad = torch.ops.aten._fused_rms_norm_backward if hasattr(torch.ops.aten, "_fused_rms_norm_backward") else None
    ours = times(lambda: k("rms_norm_backward_bf16", n, 2 * block, x, w, g, None, y, None, n, d, 1e-5, Int(0)))
    if norm_grad:
        rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
        report("rms_norm backward dx", ours, times(lambda: norm_grad(g, x, [d], rstd, w, [True, False])))
    else:
        print(f"  rms_norm backward dx: ours {ours:.1f}")
    lx, lw = rand(9232, 1024, dtype=t), rand(1024, dtype=t)
    ly = torch.empty_like(lx)
    report("layer_norm forward 9232x1024", times(lambda: k("layer_norm_forward_bf16", 9232, norm_block(1024, t), lx, None, lw, lw, None, ly, 9232, 1024, 1e-5, Int(0))),
           times(lambda: F.layer_norm(lx, (1024,), lw, lw)))
    gate, up, gg = (rand(n, f, dtype=t) for _ in range(3))
    a, c, e = torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate)
    grid = (ceil(f, 2048), n)
    report("swiglu forward 11264x11008", times(lambda: k("swiglu_forward_bf16", grid, 256, gate, f, up, f, a, n, f)), times(lambda: F.silu(gate) * up))
    def torch_swiglu_backward():
        s = F.silu(gate)
        return gg * s, torch.ops.aten.silu_backward(gg * up, gate)
    report("swiglu backward", times(lambda: k("swiglu_backward_bf16", grid, 256, gate, f, up, f, gg, a, f, c, f, n, f)), times(torch_swiglu_backward))
    v = rand(9232, 4096, dtype=t)
    z = torch.empty_like(v)
    report("quick_gelu forward 9232x4096", times(lambda: k("quick_gelu_forward_bf16", 8 * sms, 256, v, z, v.numel())), times(lambda: v * torch.sigmoid(1.702 * v)))
    q = rand(16, 704, 32, 128, dtype=t).transpose(1, 2)
    o = torch.empty_like(q)
    angle = rand(1, 704, 64)
    cos, sin = angle.cos(), angle.sin()
    cos2, sin2 = (torch.cat([v, v], -1).to(t).unsqueeze(1) for v in (cos, sin))
    def torch_rope():
        left, right = q.chunk(2, -1)
        return q * cos2 + torch.cat([-right, left], -1) * sin2
    report("rope 16x32x704x128", times(lambda: k("rope_bf16", 16 * 704, 64, q, cos, sin, o, 16, 32, 704, 128, *q.stride()[:3], *o.stride()[:3], 0, 1.0)), times(torch_rope))


# ---- Attention.


class Attention:
    def __init__(self, d, prefix="attention", **options):
        self.d, self.prefix = d, "attention_any" if prefix == "attention_any" else "attention"
        if prefix == "attention_sm90":
            self.k = Module("attention_sm90", f"-DHEAD_DIM={d}", "-DPARTS_ONLY", **options)
            self.config = self.k.constant("attention_config", 9)
        elif prefix == "attention":
            self.k = Module("attention", f"-DHEAD_DIM={d}", **options)
            self.config = self.k.constant("attention_config", 9)
        else:
            self.k = Module("attention_any", **options)
            self.config = [8, 256, 0] * 3
        self.tail = (Int(d),) if prefix == "attention_any" else ()

    def shape(self, q, k, causal, lengths=None, cu_q=None, cu_k=None, longest=None):
        b, hq, sq, d = q.shape
        if cu_q is not None:
            return Shape(len(cu_q) - 1, hq, k.shape[1], *longest, causal, 1 / math.sqrt(d), 0, None, cu_q.data_ptr(), cu_k.data_ptr(), 0, sq)
        pointer = None if lengths is None else lengths.data_ptr()
        return Shape(b, hq, k.shape[1], sq, k.shape[2], causal, 1 / math.sqrt(d), 0, pointer, None, None, hq * sq, sq)

    def strides(self, *xs):
        return [Strides(*x.stride()[:3]) for x in xs]

    def forward(self, q, k, v, o, lse, shape):
        rows, threads, shared = self.config[:3]
        self.k(f"{self.prefix}_forward_{NAMES[q.dtype]}", (ceil(shape.sq, rows), shape.hq, shape.b), threads, q, k, v, o, lse,
               *self.strides(q, k, v, o), shape, *self.tail, shared=shared)

    def delta(self, o, g, delta, shape):
        self.k(f"{self.prefix}_delta_{NAMES[o.dtype]}", (ceil(shape.sq, 8), shape.hq, shape.b), 256, o, g, delta, *self.strides(o, g), shape, *self.tail)

    def dkv(self, q, k, v, g, lse, delta, dk, dv, shape):
        rows, threads, shared = self.config[3:6]
        self.k(f"{self.prefix}_backward_dkv_{NAMES[q.dtype]}", (ceil(shape.sk, rows), shape.hkv, shape.b), threads, q, k, v, g, lse, delta, dk, dv,
               *self.strides(q, k, v, g, dk, dv), shape, *self.tail, shared=shared)

    def dq(self, q, k, v, g, lse, delta, dq, shape):
        rows, threads, shared = self.config[6:9]
        self.k(f"{self.prefix}_backward_dq_{NAMES[q.dtype]}", (ceil(shape.sq, rows), shape.hq, shape.b), threads, q, k, v, g, lse, delta, dq,
               *self.strides(q, k, v, g, dq), shape, *self.tail, shared=shared)

    def backward(self, q, k, v, o, g, lse, delta, dq, dk, dv, shape):
        self.delta(o, g, delta, shape)
        self.dkv(q, k, v, g, lse, delta, dk, dv, shape)
        self.dq(q, k, v, g, lse, delta, dq, shape)


def reference_attention(q, k, v, g, causal, lengths=None):
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    group, sq, sk = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    kk, vv = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ kk.transpose(2, 3) / math.sqrt(q.shape[3])
    key = torch.arange(sk, device="cuda").view(1, 1, 1, sk)
    seen = torch.ones(q.shape[0], 1, sq, sk, dtype=torch.bool, device="cuda")
    if causal:
        seen = seen & (key <= torch.arange(sk - sq, sk, device="cuda").view(1, 1, sq, 1))
    if lengths is not None:
        seen = seen & (key < lengths.view(-1, 1, 1, 1))
    lse = scores.masked_fill(~seen, -1e30).logsumexp(-1)
    lse = lse.masked_fill(~seen.any(-1), 0.0)
    p = (scores - lse.unsqueeze(-1)).masked_fill(~seen, -math.inf).exp()
    o = p @ vv
    o.backward(g.double())
    return o.detach(), lse.detach(), seen.any(-1).expand(lse.shape), q.grad, k.grad, v.grad


def bshd(b, h, s, d, dtype, make=rand, **kw):
    return make(b, s, h, d, dtype=dtype, **kw).transpose(1, 2)


def check_attention_case(attention, dtype, b, hq, hkv, sq, sk, causal, lengths, layout):
    d = attention.d
    make = bshd if layout else lambda b, h, s, d, dtype, make=rand: make(b, h, s, d, dtype=dtype)
    q, k, v, g = make(b, hq, sq, d, dtype), make(b, hkv, sk, d, dtype), make(b, hkv, sk, d, dtype), make(b, hq, sq, d, dtype)
    lens = None if lengths is None else torch.tensor(lengths, device="cuda", dtype=torch.int32)
    o, dq, dk, dv = (make(*x.shape, dtype, make=poison) for x in (q, q, k, k))
    lse, delta = poison(b, hq, sq), poison(b, hq, sq)
    shape = attention.shape(q, k, causal, lens)
    attention.forward(q, k, v, o, lse, shape)
    attention.backward(q, k, v, o, g, lse, delta, dq, dk, dv, shape)
    ref_o, ref_lse, seen, ref_q, ref_k, ref_v = reference_attention(q, k, v, g, causal, lens)
    tol = ATTENTION[dtype]
    parts = [check(f"o {dtype} {d} {sq}x{sk} causal {causal}", o, ref_o, tol), check("lse", lse[seen], ref_lse[seen], 1e-3 if tol > 1e-4 else 1e-5),
             check("dq", dq, ref_q, tol * 1.5), check("dk", dk, ref_k, tol * 1.5), check("dv", dv, ref_v, tol)]
    line(f"{NAMES[dtype]} d{d} b{b} h{hq}/{hkv} {sq}x{sk} {'causal' if causal else 'full'} {lengths or ''} {'bshd' if layout else 'bhsd'}", *parts)


def check_packed(attention, dtype):
    d, lengths, hq, hkv = attention.d, [37, 1, 130, 201], 4, 2
    total = sum(lengths)
    cu = torch.tensor([0] + [sum(lengths[: i + 1]) for i in range(len(lengths))], device="cuda", dtype=torch.int32)
    q, g = bshd(1, hq, total, d, dtype), bshd(1, hq, total, d, dtype)
    k, v = bshd(1, hkv, total, d, dtype), bshd(1, hkv, total, d, dtype)
    o, dq, dk, dv = (bshd(*x.shape, dtype, make=poison) for x in (q, q, k, k))
    lse, delta = poison(hq, total), poison(hq, total)
    shape = attention.shape(q, k, 1, cu_q=cu, cu_k=cu, longest=(max(lengths), max(lengths)))
    attention.forward(q, k, v, o, lse, shape)
    attention.backward(q, k, v, o, g, lse, delta, dq, dk, dv, shape)
    refs = []
    for i in range(len(lengths)):
        part = slice(int(cu[i]), int(cu[i + 1]))
        refs.append(reference_attention(*(x[:, :, part] for x in (q, k, v, g)), True))
    ref = [torch.cat([r[i] for r in refs], 2) for i in (0, 3, 4, 5)]
    tol = ATTENTION[dtype]
    line(f"packed {NAMES[dtype]} d{d} {lengths}", check("o", o, ref[0], tol), check("dq", dq, ref[1], tol * 1.5), check("dk", dk, ref[2], tol * 1.5), check("dv", dv, ref[3], tol))


def check_attention(bench):
    hopper = torch.cuda.get_device_capability() == (9, 0)
    modules, older = {}, {}
    for d, prefix in ((128, "attention"), (64, "attention"), (80, "attention"), (96, "attention"), (128, "attention_sm90"), (64, "attention_sm90")):
        if prefix == "attention_sm90" and not hopper:
            continue
        older[d] = modules.get(d)
        modules[d] = attention = Attention(d, prefix)
        for dtype in (torch.bfloat16, torch.float16):
            for case in (
                (2, 4, 4, 256, 256, 1, None, True), (2, 4, 2, 203, 203, 1, None, True), (3, 4, 1, 77, 333, 1, None, False),
                (2, 2, 2, 300, 130, 1, None, True), (2, 2, 2, 577, 577, 0, None, True), (4, 4, 2, 190, 190, 1, [190, 64, 1, 0], True),
                (3, 2, 2, 129, 257, 0, [257, 100, 0], False), (1, 1, 1, 1, 1, 1, None, True), (1, 2, 1, 1100, 1100, 1, None, True),
            ):
                check_attention_case(attention, dtype, *case)
            check_packed(attention, dtype)
        torch.cuda.synchronize()
    for d in (16, 40, 128):
        attention = Attention(d, "attention_any")
        for dtype in NAMES:
            for case in ((2, 4, 2, 70, 70, 1, None, True), (2, 2, 1, 33, 90, 1, None, False), (3, 2, 2, 50, 65, 0, [65, 20, 0], True), (2, 2, 2, 60, 40, 1, [33, 0], True)):
                check_attention_case(attention, dtype, *case)
        check_packed(attention, torch.float32)
    if bench:
        bench_attention(modules, [("mma.sync", older)] if hopper else [])


def bench_attention(modules, variants=()):
    t = torch.bfloat16
    for b, h, s, d, causal in ((16, 32, 256, 128, 1), (8, 32, 704, 128, 1), (16, 32, 768, 128, 1), (4, 32, 3072, 128, 1), (16, 16, 577, 64, 0)):
        q, k, v, g, o, dq, dk, dv = (bshd(b, h, s, d, t) for _ in range(8))
        lse, delta = poison(b, h, s), poison(b, h, s)
        flops = 4 * b * h * s * s * d / (2 if causal else 1)
        aten = torch.ops.aten
        out = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, bool(causal))
        flash = times(lambda: aten._scaled_dot_product_flash_attention(q, k, v, 0.0, bool(causal)))
        flash_back = times(lambda: aten._scaled_dot_product_flash_attention_backward(g, q, k, v, out[0], out[1], *out[2:6], 0.0, bool(causal), *out[6:8]))
        best, best_back, note = flash, flash_back, "flash"
        try:
            c = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, bool(causal))
            cudnn = times(lambda: aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, bool(causal)))
            cudnn_back = times(lambda: aten._scaled_dot_product_cudnn_attention_backward(g, q, k, v, c[0], c[1], c[6], c[7], None, *c[2:6], 0.0, bool(causal)))
            note += f" {flash:.0f}+{flash_back:.0f}, cudnn {cudnn:.0f}+{cudnn_back:.0f}"
        except Exception as error:  # which backends there are depends on the build
            note += f" (no cudnn: {str(error)[:60]})"
        default = times(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=bool(causal)))
        for label, table in (("", modules), *variants):
            m = table[d]
            shape = m.shape(q, k, causal)
            fwd = times(lambda: m.forward(q, k, v, o, lse, shape))
            delta_time = times(lambda: m.delta(o, g, delta, shape))
            dkv = times(lambda: m.dkv(q, k, v, g, lse, delta, dk, dv, shape))
            dqt = times(lambda: m.dq(q, k, v, g, lse, delta, dq, shape))
            name = f"attention b{b} h{h} t{s} d{d}{' causal' if causal else ''}"
            if label:
                print(f"    {label}: fwd {fwd:.1f} ({flops / fwd / 1e6:.0f} TFLOP/s) delta {delta_time:.1f} dkv {dkv:.1f} dq {dqt:.1f}")
                continue
            report(name + " fwd", fwd, best, f"{flops / fwd / 1e6:.0f} TFLOP/s; default {default:.0f}; {note}")
            back = delta_time + dkv + dqt
            report(name + " bwd", back, best_back, f"{2.5 * flops / back / 1e6:.0f} TFLOP/s; delta {delta_time:.0f} dkv {dkv:.0f} dq {dqt:.0f}")
            report(name + " fwd+bwd", fwd + back, best + best_back)


# ---- Losses.


def reference_losses(logits, teacher, targets, tau, grad):
    logits = logits.double().requires_grad_()
    ce = F.cross_entropy(logits, targets, reduction="none")
    if teacher is None:
        kl = torch.zeros_like(ce)
    else:
        p, q = F.log_softmax(teacher.double() / tau, -1), F.log_softmax(logits / tau, -1)
        kl = (p.exp() * (p - q)).sum(-1) * tau * tau
    ((ce * grad[:, 0].double()).sum() + (kl * grad[:, 1].double()).sum()).backward()
    return torch.stack([ce.detach(), kl.detach()], 1), logits.grad


def check_losses(bench):
    k = Module("losses")
    for dtype in NAMES:
        t = NAMES[dtype]
        for n, vocab, tau, wide in ((7, 32000, 1.0, True), (5, 151, 2.0, False), (3, 8, 0.5, True), (4, 50257, 2.0, False), (2, 1, 1.0, True)):
            for distil in (False, True):
                logits = rand(n, vocab, dtype=dtype, scale=3.0)
                logits[0] = logits[0].round() # ties
                teacher = (logits.float() + rand(n, vocab, scale=0.5)).to(dtype) if distil else None
                targets = torch.randint(vocab, (n,), device="cuda")
                first = (logits == logits.max(-1, keepdim=True).values).to(torch.int8).argmax(-1)
                targets[0] = first[0]
                grad, out = rand(n, 3), poison(n, 3)
                passed = targets if wide else targets.int()
                ref, ref_grad = reference_losses(logits, teacher, targets, tau, grad)
                k(f"token_losses_forward_{t}", n, 512, logits, teacher, passed, out, vocab, n, tau, Int(wide))
                # The divergence is a small difference of large sums in f32.
                parts = [check("ce", out[:, 0], ref[:, 0], 2e-6), check("kl", out[:, 1], ref[:, 1], 2e-4),
                         check("correct", out[:, 2], (first == targets).double(), 0.0)]
                if dtype == torch.float32:
                    for other in (torch.bfloat16, torch.float16):
                        to = poison(n, vocab, dtype=other)
                        k(f"token_losses_backward_f32_{NAMES[other]}", n, 512, logits, teacher, passed, grad, to, vocab, n, tau, Int(wide))
                        parts.append(check("dlogits", to, ref_grad, ROUNDED[other] * 2))
                k(f"token_losses_backward_{t}", n, 512, logits, teacher, passed, grad, vocab, n, tau, Int(wide))
                parts.append(check("dlogits", logits, ref_grad, max(ROUNDED[dtype] * 2, 1e-5)))
                line(f"losses {t} {n}x{vocab} tau {tau}{' + teacher' if distil else ''}", *parts)
    if not bench:
        return
    n, vocab = 2048, 32000
    logits, teacher = rand(n, vocab, dtype=torch.bfloat16), rand(n, vocab, dtype=torch.bfloat16)
    targets, grad, out = torch.randint(vocab, (n,), device="cuda"), rand(n, 3), poison(n, 3)
    report("cross entropy forward 2048x32000", times(lambda: k("token_losses_forward_bf16", n, 512, logits, None, targets, out, vocab, n, 1.0, Int(1))),
           times(lambda: F.cross_entropy(logits.float(), targets, reduction="none")))
    def torch_both():
        p, q = F.log_softmax(teacher.float(), -1), F.log_softmax(logits.float(), -1)
        return F.nll_loss(q, targets, reduction="none"), (p.exp() * (p - q)).sum(-1)
    report("cross entropy + KL forward", times(lambda: k("token_losses_forward_bf16", n, 512, logits, teacher, targets, out, vocab, n, 1.0, Int(1))), times(torch_both))
    grad.mul_(1e-3)
    one = times(lambda: k("token_losses_backward_bf16", n, 512, logits, None, targets, grad, vocab, n, 1.0, Int(1)))
    two = times(lambda: k("token_losses_backward_bf16", n, 512, logits, teacher, targets, grad, vocab, n, 1.0, Int(1)))
    print(f"  losses backward 2048x32000 bf16 in place: {one:.1f}, with teacher {two:.1f}")


# ---- Picks.


def reference_farthest(features, keep):
    """One image, in float64: picks and the smallest margin between the best and the next value."""
    x = features.double()
    unit = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    distance = (1 - unit @ unit.T).nan_to_num(0.0)
    n = len(x)
    alone = distance + torch.eye(n, device=x.device, dtype=x.dtype) * 10
    values, picks, margin = alone.min(1).values.clamp_max(4.0), [], math.inf
    nearest = torch.full((n,), 4.0, device=x.device, dtype=x.dtype)
    for _ in range(keep):
        top = values.topk(min(2, n)).values
        margin = min(margin, (top[0] - top[-1]).item()) if n > 1 else margin
        pick = (values == values.max()).to(torch.int8).argmax().item()
        picks.append(pick)
        nearest = torch.minimum(nearest, distance[pick])
        nearest[picks] = -1.0
        values = nearest
    return picks, margin


def farthest(k, features, keep, buffers=None):
    b, n, d = features.shape
    gram, scale, isolation, picks = buffers or (None, poison(b, n), poison(b, n), torch.full((b, keep), -1, device="cuda", dtype=torch.int32))
    if features.dtype == torch.float32:
        unit = poison(b, n, d)
        k("normalise_rows_f32", b * n, 256, features, unit, b * n, d)
        gram, raw = torch.bmm(unit, unit.transpose(1, 2)), 0
    else:
        gram, raw = torch.bmm(features, features.transpose(1, 2), out_dtype=torch.float32), 1
    k("farthest_scale", ceil(b * n, 256), 256, gram, scale, Int(b), Int(n), Int(raw))
    k("farthest_isolation", (ceil(n, 8), b), 256, gram, scale, isolation, Int(b), Int(n), Int(raw))
    k("farthest_picks", b, min(1024, ceil(n, 32) * 32), gram, scale, isolation, picks, Int(b), Int(n), Int(keep), Int(0))
    return picks


def published_divprune(features, keep):
    """The published procedure: one image at a time, a few launches per pick."""
    out = []
    for x in features:
        unit = x / x.norm(dim=1, keepdim=True)
        distance = 1.0 - unit @ unit.t()
        s = torch.empty(keep, dtype=torch.long, device=x.device)
        for i in range(keep):
            m2 = distance if i == 0 else torch.index_select(distance, 0, s[:i])
            scores = torch.topk(m2, 2, dim=0, largest=False).values[1] if i == 0 else torch.min(m2, dim=0).values
            s[i] = torch.argmax(scores)
        out.append(s)
    return torch.stack(out)


def reference_map(gram, keep):
    L = gram.double()
    n = len(L)
    residual, c, picks, margin = L.diagonal().clone(), torch.zeros(keep, n, device=L.device, dtype=L.dtype), [], math.inf
    for t in range(keep):
        top = residual.topk(min(2, n)).values
        margin = min(margin, (top[0] - top[-1]).item()) if n > 1 else margin
        j = (residual == residual.max()).to(torch.int8).argmax().item()
        picks.append(j)
        if residual[j] > 0:
            c[t] = (L[j] - c[:t, j] @ c[:t]) / residual[j].sqrt()
        left = residual - c[t] ** 2
        left[left <= 1e-5 * L.diagonal()] = 0.0
        residual = torch.where(residual >= 0, left, residual)
        residual[picks] = -2.0
    return picks, margin


def check_points(bench):
    k = Module("points")
    for dtype in NAMES:
        exact = close = 0
        for seed, (b, n, d, keep) in enumerate(((4, 576, 256, 57), (3, 33, 64, 33), (2, 1, 16, 1), (2, 1500, 128, 40), (1, 4096, 64, 100), (5, 100, 7, 50))):
            features = rand(b, n, d, dtype=dtype)
            if n > 50:
                features[0, 3] = 0
                features[0, 7] = features[0, 5] # tie
            picks = farthest(k, features, keep)
            for row, x in zip(picks.tolist(), features):
                ref, margin = reference_farthest(x, keep)
                exact += row == ref
                close += row != ref and margin < 1e-6
                if row != ref and margin >= 1e-6:
                    failures.append(f"farthest {NAMES[dtype]} {b}x{n}x{d}: first difference at {[a == c for a, c in zip(row, ref)].index(False)}, margin {margin:.1e}")
        line(f"farthest points {NAMES[dtype]}", f"{exact} images exact, {close} differ within a margin of 1e-6")
    features = rand(2, 40, 16)
    features[0, 4], features[1, :] = float("nan"), 1.0
    picks = farthest(k, features, 20).tolist()
    if any(len(set(row)) != 20 for row in picks) or picks[1] != list(range(20)):
        failures.append(f"farthest with NaN, equal rows: {picks}")
    exact = close = 0
    for b, n, d, keep in ((4, 576, 96, 57), (2, 64, 64, 30), (2, 1, 8, 1), (1, 2048, 128, 100)):
        x = F.normalize(rand(b, n, d), dim=-1)
        x = x * (torch.rand(b, n, 1, device="cuda") + 1e-3) # relevance
        kernel = x @ x.transpose(1, 2)
        scratch, picks = poison(b, keep, n), torch.full((b, keep), -1, device="cuda", dtype=torch.int64)
        k("greedy_map", b, min(1024, ceil(n, 32) * 32), kernel, scratch, picks, Int(b), Int(n), Int(keep), Int(1), shared=keep * 4)
        for row, L in zip(picks.tolist(), kernel):
            ref, margin = reference_map(L, keep)
            exact += row == ref
            close += row != ref and margin < 1e-6
            if row != ref and margin >= 1e-6:
                failures.append(f"greedy map {n}: first difference at {[a == c for a, c in zip(row, ref)].index(False)}, margin {margin:.1e}")
    broken = F.normalize(rand(1, 20, 16), dim=-1)
    broken[0, 3], broken[0, 5] = float("nan"), 0.0
    kernel, scratch, picks = broken @ broken.transpose(1, 2), poison(1, 20, 20), torch.full((1, 20), -1, device="cuda", dtype=torch.int32)
    k("greedy_map", 1, 32, kernel, scratch, picks, Int(1), Int(20), Int(20), Int(0), shared=80)
    if sorted(picks[0].tolist()) != list(range(20)) or picks[0, -1] != 3:
        failures.append(f"greedy map with a NaN row: {picks.tolist()}")
    line("greedy map", f"{exact} exact, {close} differ within a margin of 1e-6")
    if not bench:
        return
    b, n, d, keep = 16, 576, 4096, 57
    features = rand(b, n, d, dtype=torch.bfloat16)
    buffers = (None, poison(b, n), poison(b, n), torch.empty(b, keep, device="cuda", dtype=torch.int32))
    published_divprune(features, keep)
    torch.cuda.synchronize()
    samples = []
    for _ in range(5):
        began = time.time()
        published_divprune(features, keep)
        torch.cuda.synchronize()
        samples.append((time.time() - began) * 1e6)
    report("divprune 16x576x4096 -> 57", times(lambda: farthest(k, features, keep, buffers)), statistics.median(samples))
    gram = torch.bmm(features, features.transpose(1, 2), out_dtype=torch.float32)
    args = (Int(b), Int(n), Int(keep), Int(0))
    print(f"    product {times(lambda: torch.bmm(features, features.transpose(1, 2), out_dtype=torch.float32)):.1f}"
          f" isolation {times(lambda: k('farthest_isolation', (ceil(n, 8), b), 256, gram, buffers[1], buffers[2], Int(b), Int(n), Int(1))):.1f}"
          f" picks {times(lambda: k('farthest_picks', b, 576, gram, *buffers[1:], *args)):.1f}")
    unit = F.normalize(features.float(), dim=-1)
    kernel, scratch = torch.bmm(unit, unit.transpose(1, 2)), poison(b, keep, n)
    print(f"    greedy map 16x576 -> 57: {times(lambda: k('greedy_map', b, 576, kernel, scratch, buffers[3], *args, shared=keep * 4)):.1f}")


# ---- AdamW.


def adamw_tables(params, grads, ms, vs, step_size, keep):
    # A table entry: four pointers, a length, two f32 side by side.
    packed = int.from_bytes(bytes(ctypes.c_float(step_size)) + bytes(ctypes.c_float(keep)), "little", signed=True)
    table = [[p.data_ptr(), p.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr(), p.numel(), packed] for p, g, m, v in zip(params, grads, ms, vs)]
    chunks = [[i, j] for i, p in enumerate(params) for j in range(ceil(p.numel(), 8192))]
    return torch.tensor(table, device="cuda", dtype=torch.int64), torch.tensor(chunks, device="cuda", dtype=torch.int32)


def adamw(k, tensors, chunks, partial, norm, betas, eps, t, max_norm, scale=1.0):
    n = len(chunks)
    k("adamw_squares", n, 256, tensors, chunks, partial)
    k("adamw_norm", 1, 1024, partial, n, scale, max_norm, norm)
    k("adamw_step", n, 256, tensors, chunks, norm, *betas, 1 - betas[0], 1 - betas[1], eps, 1 / math.sqrt(1 - betas[1] ** t))


def check_adamw(bench):
    k = Module("adamw")
    lr, wd, betas, eps, max_norm = 1e-2, 0.1, (0.9, 0.999), 1e-8, 1.0
    sizes = [1, 5, 8192, 8193, 100001, 4096 * 128]
    ours = [rand(n, offset=n % 2) for n in sizes]
    refs = [p.double().clone().requires_grad_() for p in ours]
    optim = torch.optim.AdamW(refs, lr, betas, eps, wd)
    ms, vs = [torch.zeros_like(p) for p in ours], [torch.zeros_like(p) for p in ours]
    parts = []
    for t in range(1, 6):
        grads = [rand(n, scale=0.1) for n in sizes]
        tensors, chunks = adamw_tables(ours, grads, ms, vs, lr / (1 - betas[0] ** t), 1 - lr * wd)
        partial, norm = poison(len(chunks)), poison(2)
        adamw(k, tensors, chunks, partial, norm, betas, eps, t, max_norm if t > 2 else 0.0)
        for p, g in zip(refs, grads):
            p.grad = g.double()
        expected = torch.nn.utils.clip_grad_norm_(refs, max_norm if t > 2 else 1e30)
        optim.step()
        parts.append(check("norm", norm[:1], expected.view(1), 1e-6))
    for p, ref in zip(ours, refs):
        parts.append(check(f"adamw {p.numel()}", p, ref.detach(), 1e-6))
    line("adamw", *parts)
    if not bench:
        return
    params = [rand(4096, 128) for _ in range(448)]
    grads, ms, vs = ([torch.randn_like(p) * 0.01 for p in params] for _ in range(3))
    vs = [v.abs() for v in vs]
    tensors, chunks = adamw_tables(params, grads, ms, vs, lr, 1 - lr * wd)
    partial, norm = poison(len(chunks)), poison(2)
    ours_time = times(lambda: adamw(k, tensors, chunks, partial, norm, betas, eps, 3, 1.0))
    leaves = [p.clone().requires_grad_() for p in params]
    for p, g in zip(leaves, grads):
        p.grad = g.clone()
    optim = torch.optim.AdamW(leaves, lr, betas, eps, wd, fused=True)
    def torch_step():
        torch.nn.utils.clip_grad_norm_(leaves, 1.0, foreach=True)
        optim.step()
    for _ in range(3):
        torch_step()
    samples = []
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.time()
        torch_step()
        torch.cuda.synchronize()
        samples.append((time.time() - began) * 1e6)
    report("clip + adamw, 448 x 4096x128 f32", ours_time, statistics.median(samples), "torch: fused, foreach clip, with launches")


# ---- Dropout.


def check_dropout(bench):
    import numpy as np

    k = Module("dropout")

    def finalise(z):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    for dtype in NAMES:
        for n, d, p, place in ((5, 4096, 0.05, 17), (3, 77, 0.3, 2**63 + 5), (65, 128, 0.5, 0)):
            states = np.random.default_rng().integers(0, 2**64, n, dtype=np.uint64)
            keys = torch.from_numpy(states.view(np.int32).reshape(n, 2).copy()).cuda()
            threshold, keep = round(p * 65536), float(np.float32(1 / (1 - p)))
            with np.errstate(over="ignore"):
                mixed = finalise((states ^ finalise(np.uint64(place) + golden)) + golden)
                bits = finalise(mixed[:, None] + (np.arange(ceil(d, 4), dtype=np.uint64) + np.uint64(1)) * golden)
            parts = np.stack([(bits >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)], -1).reshape(n, -1)[:, :d]
            ref = torch.from_numpy(np.where(parts < threshold, 0.0, np.float32(keep))).cuda().to(dtype)
            x, y, add = rand(n, d, dtype=dtype), poison(n, d, dtype=dtype), rand(n, d, dtype=dtype)
            signed = place - 2**64 if place >= 2**63 else place
            masked = x.float() * ref.float()
            sum = (masked + add.float()).to(dtype)
            k(f"dropout_{NAMES[dtype]}", n, 256, x, keys, None, y, n, d, signed, Int(threshold), keep)
            k(f"dropout_{NAMES[dtype]}", n, 256, x, keys, add, add, n, d, signed, Int(threshold), keep)
            line(f"dropout {NAMES[dtype]} {n}x{d} p {p}", check("x mask", y, masked.to(dtype), 0.0), check("x mask + sum", add, sum, 1e-4))
    if bench:
        n, d = 11264, 4096
        x, keys = rand(n, d, dtype=torch.bfloat16), torch.randint(2**31, (n, 2), device="cuda", dtype=torch.int32)
        y = torch.empty_like(x)
        report("dropout 11264x4096", times(lambda: k("dropout_bf16", n, 256, x, keys, None, y, n, d, 3, Int(3277), 1.0526)), times(lambda: F.dropout(x, 0.05)))


SECTIONS = {"dropout": check_dropout, "elementwise": check_elementwise, "losses": check_losses, "points": check_points, "adamw": check_adamw, "attention": check_attention}


def main():
    global ROOT
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--kernels", default=ROOT)
    parser.add_argument("--no-bench", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    ROOT = args.kernels
    torch.manual_seed(time.time_ns() % 2**31)
    torch.backends.cuda.matmul.allow_tf32 = False
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    for name in args.only.split(","):
        began = time.time()
        print(f"== {name}", flush=True)
        try:
            SECTIONS[name](not args.no_bench)
            torch.cuda.synchronize()
        except Exception as error:
            import traceback

            traceback.print_exc()
            failures.append(f"{name}: {error}")
        print(f"   ({time.time() - began:.1f} s)")
    print("== times, microseconds")
    for row in rows:
        print(f"  {row['name']:44s} torch {row['torch']:9.1f}  ours {row['ours']:9.1f}  ratio {row['ratio']:5.2f}")
    print("== failures" if failures else "== all checks passed")
    for failure in failures:
        print("  " + failure)
    if args.json:
        json.dump({"device": torch.cuda.get_device_name(), "date": time.strftime("%Y-%m-%d"), "rows": rows}, open(args.json, "w"), indent=1)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
