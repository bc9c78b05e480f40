#!/usr/bin/env python3
"""Whole training steps of LLaVA-1.5-7B's recipes in PyTorch: what `dualspeed bench --size 7b` is compared with.

The work is that of the cases of the same name there: cached tower features from pinned host memory, projector, visual
tokens (all, or 57 of 576 a tile behind an isolator of 4) and text through the decoder, loss, backward, clipping,
AdamW. Written as its users would at their best: transformers' Llama with SDPA, peft's LoRA in bf16 (no f32 copies),
fused AdamW, gradient checkpointing on or off, whichever is faster and fits. Picking the pruned tokens is left out here
(random tokens are kept), while our steps include DivPrune. Beside the steps, the vision tower's forward pass up to the
layer that LLaVA reads (transformers' CLIPVisionModel, SDPA), which stands in suite `ops` there.

    python3 benches/torch_reference.py [--case "stage 2 fast" ...] [--warmup 3] [--steps 8] [--json OUT]
"""

import argparse
import datetime
import gc
import json
import statistics
import sys
import time

import torch
import transformers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

D, VISION, TILE, KEEP, ISOLATOR = 4096, 1024, 576, 57, 4
PARAMETERS = 6_738_415_616

# name: (stage, fast, batch, tiles, text)
CASES = {
    "stage 1 full": (1, False, 32, 1, 32),
    "stage 1 fast": (1, True, 32, 1, 32),
    "stage 2 full": (2, False, 16, 1, 192),
    "stage 2 fast": (2, True, 16, 1, 192),
    "next full": (2, False, 4, 5, 192),
    "next fast": (2, True, 4, 5, 192),
}
TOWER = "clip vit-l/14-336 forward b16"


class Model(torch.nn.Module):
    """Projector, isolator and decoder."""

    def __init__(self):
        super().__init__()
        config = LlamaConfig(
            hidden_size=D,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            vocab_size=32000,
            tie_word_embeddings=False,
        )
        config._attn_implementation = "sdpa"
        self.projector = torch.nn.Sequential(
            torch.nn.Linear(VISION, D), torch.nn.GELU(), torch.nn.Linear(D, D)
        )
        self.isolator = torch.nn.Parameter(torch.randn(ISOLATOR, D) * 0.02)
        self.decoder = LlamaForCausalLM(config)
        self.decoder.config.use_cache = False

    def forward(self, features, ids, labels, keep):
        batch, tiles = features.shape[:2]
        visual = self.projector(features)  # [batch, tiles, 576, D]
        if keep is not None:
            index = keep[..., None].expand(-1, -1, -1, D)
            visual = visual.gather(2, index)  # [batch, tiles, 57, D]
            isolator = self.isolator.expand(batch, tiles, -1, -1)
            visual = torch.cat([isolator, visual], 2)
        visual = visual.flatten(1, 2)
        embed = self.decoder.get_input_embeddings()(ids)
        x = torch.cat([embed[:, :1], visual, embed[:, 1:]], 1)
        ignored = torch.full(visual.shape[:2], -100, device=ids.device)
        labels = torch.cat([labels[:, :1], ignored, labels[:, 1:]], 1)
        return self.decoder(inputs_embeds=x, labels=labels, use_cache=False).loss


def build(stage):
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Model()
    torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    model.projector.requires_grad_(True)
    model.isolator.requires_grad_(True)
    if stage == 2:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=128,
            lora_alpha=256,
            lora_dropout=0.05,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            task_type="CAUSAL_LM",
        )
        model.decoder = get_peft_model(model.decoder, lora, autocast_adapter_dtype=False)
    model.train()
    return model


def measure(model, case, checkpointing, steps, warmup):
    _, fast, batch, tiles, text = case
    if checkpointing:
        model.decoder.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.decoder.gradient_checkpointing_disable()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
    features = torch.randn(4 * batch, tiles, TILE, VISION, dtype=torch.bfloat16).pin_memory()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for step in range(warmup + steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        rows = features[(step % 4) * batch : (step % 4 + 1) * batch].cuda(non_blocking=True)
        ids = torch.randint(3, 32000, (batch, text), device="cuda")
        labels = ids.clone()
        labels[:, : text - text // 2] = -100
        keep = None
        if fast:
            scores = torch.rand(batch, tiles, TILE, device="cuda")
            keep = scores.topk(KEEP, -1).indices.sort(-1).values
        loss = model(rows, ids, labels, keep)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in trained if p.grad is not None], 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()
        times.append(time.perf_counter() - begin)
    return times[warmup:], torch.cuda.max_memory_reserved() / 2**30


def tower():
    """CLIP ViT-L/14-336 up to the input of its last layer, 16 images, bf16."""
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config._attn_implementation = "sdpa"
    model = CLIPVisionModel(config).to("cuda", torch.bfloat16).eval()
    pixels = torch.randn(16, 3, 336, 336, device="cuda", dtype=torch.bfloat16)

    def block(calls):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            model(pixel_values=pixels).last_hidden_state[:, 1:]
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin) / calls

    with torch.inference_mode():
        first = block(1)
        block(3)
        times = sorted(block(3) for _ in range(7))
    return {"suite": "op", "name": TOWER, "ms": times[3], "spread_ms": times[5] - times[1], "first_ms": first}


def best_of(model, name, args):
    """The better of checkpointing on and off; `None` if neither fits."""
    _, fast, batch, tiles, text = case = CASES[name]
    best = None
    for checkpointing in (False, True):
        # Known from the anchor runs: full sequences do not fit without checkpointing.
        if not checkpointing and not fast:
            continue
        try:
            times, peak = measure(model, case, checkpointing, args.steps, args.warmup)
        except torch.OutOfMemoryError:
            times = None
        model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        if times and (best is None or 1e3 * statistics.median(times) < best["ms"]):
            seconds = statistics.median(times)
            visual = tiles * (KEEP + ISOLATOR if fast else TILE)
            tokens = batch * (visual + text) / seconds
            best = {
                "suite": "step",
                "name": name,
                "ms": 1e3 * seconds,
                "spread_ms": 1e3 * (max(times) - min(times)),
                "samples_per_s": batch / seconds,
                "tokens_per_s": tokens,
                "tflops_4n": 4 * PARAMETERS * tokens / 1e12,
                "memory_gib": peak,
                "checkpointing": checkpointing,
            }
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=sorted([*CASES, TOWER]), help="repeatable; all by default")
    parser.add_argument("--steps", type=int, default=8, help="counted steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--json", help="also write the rows here, after each of them")
    args = parser.parse_args()
    names = args.case or [TOWER, *CASES]
    rows = []

    def add(row, line):
        rows.append(row)
        print(f"{row['name']:<30} {row['ms']:9.1f} ms {line}", flush=True)
        if args.json:
            head = {
                "device": torch.cuda.get_device_name(),
                "date": datetime.date.today().isoformat(),
                "command": "python3 " + " ".join(sys.argv),
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            }
            with open(args.json, "w") as file:
                json.dump({**head, "rows": rows}, file, indent=1)

    if TOWER in names:
        try:
            row = tower()
            add(row, f"spread {row['spread_ms']:.2f}")
        except Exception as error:  # the steps need not go without it
            print(f"{TOWER}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    for stage in (1, 2):
        wanted = [name for name in names if name in CASES and CASES[name][0] == stage]
        if not wanted:
            continue
        gc.collect()
        torch.cuda.empty_cache()
        model = build(stage)
        for name in wanted:
            best = best_of(model, name, args)
            if best is None:
                print(f"{name:<30} out of memory", flush=True)
                continue
            kept = "checkpointing" if best["checkpointing"] else "everything kept"
            add(
                best,
                f"{best['samples_per_s']:8.1f} samples/s {best['tflops_4n']:7.1f} TFLOP/s {best['memory_gib']:6.1f} GiB  {kept}",
            )
        del model


if __name__ == "__main__":
    main()
