"""Compiles every CUDA kernel for every architecture served, without a GPU.

    python3 -m venv VENV && VENV/bin/pip install nvidia-cuda-nvrtc
    VENV/bin/python scripts/compile_kernels.py [KERNELS...]

Takes libnvrtc from PyPI's package, or from the library path. Prints a line per module (entry points, size, seconds) and
exits with 1 if one does not compile. The list of modules is that of crates/dualspeed-ops/src/cuda.
"""

import ctypes
import glob
import os
import sys
import time

ROOT = os.path.join(os.path.dirname(__file__), "..", "crates", "dualspeed-ops", "src", "cuda", "kernels")
ARCHS = ["sm_80", "sm_89", "sm_90a"]
HEAD_DIMS = [64, 80, 96, 128]

# Name, files after the prelude, defines, architectures.
MODULES = [(name, [name], [], ARCHS) for name in ("elementwise", "losses", "points", "adamw", "dropout", "select", "attention_any")]
MODULES += [(f"attention d{d}", ["attention"], [f"-DHEAD_DIM={d}"], ARCHS) for d in HEAD_DIMS]
MODULES += [
    (f"attention_whole d{d}", ["attention", "attention_whole"], [f"-DHEAD_DIM={d}", "-DPARTS_ONLY"], ARCHS) for d in HEAD_DIMS
]
MODULES += [
    (f"attention_sm90 d{d}", ["attention", "attention_sm90"], [f"-DHEAD_DIM={d}", "-DPARTS_ONLY"], ["sm_90a"]) for d in (64, 128)
]


def library():
    for folder in sys.path:
        for pattern in ("nvidia/cu*/lib/libnvrtc.so.*", "nvidia/cuda_nvrtc/lib/libnvrtc.so.*"):
            found = [path for path in glob.glob(os.path.join(folder, pattern)) if "alt" not in path]
            if found:
                return ctypes.CDLL(found[0])
    return ctypes.CDLL("libnvrtc.so")


def compile(nvrtc, text, options):
    """The machine code, or None and the log."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    if code != 0:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        return None, log.value.decode()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    image = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, image)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return image.raw, ""


def main():
    nvrtc = library()
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    print(f"NVRTC {major.value}.{minor.value}")
    read = lambda name: open(os.path.join(ROOT, name + ".cu")).read()
    failures = 0
    known = {file for _, files, _, _ in MODULES for file in files} | {"prelude"}
    present = {os.path.basename(path)[:-3] for path in glob.glob(os.path.join(ROOT, "*.cu"))}
    for name in sorted(present ^ known):
        print(f"FAIL {name}: a file without a module, or a module without a file")
        failures += 1
    for name, files, defines, archs in MODULES:
        if len(sys.argv) > 1 and not any(wanted in name for wanted in sys.argv[1:]):
            continue
        text = "".join(read(file) for file in ["prelude", *files])
        for arch in archs:
            start = time.time()
            options = [f"--gpu-architecture={arch}", "--std=c++17", *defines]
            image, log = compile(nvrtc, text, options)
            if image is None:
                failures += 1
                print(f"FAIL {name} for {arch}\n{log}")
            else:
                entries = text.count("__global__")
                print(f"ok   {name} for {arch}: {len(image) >> 10} KiB, {entries} kernels in the text, {time.time() - start:.1f} s")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
