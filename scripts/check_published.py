"""Whether DualSpeed's published code loads what `dualspeed export --format llava` writes, mode isolator included.

    python scripts/check_published.py CHECKOUT [--program target/debug/dualspeed] [--work DIR]

CHECKOUT is a clone of github.com/dingkun-zhang/DualSpeed; nothing in it is changed. It wants transformers 4.37.2, tokenizers 0.15,
peft 0.7, accelerate 0.27 and torch; wandb is stood in for, and deepspeed not needed. Everything is in 32 bits on the CPU:
where the code says float16, it gets float32.

 1. Its own `load_pretrained_model` on the directories that its trainer wrote (tests/published-code/layouts) and on our exports of
    them: logits of a picture and a question, all visual tokens, at most 1e-5 apart; the token ids that its tokenizer makes.
 2. The same logits from our program, as log-probabilities of the tokens that it generates.
 3. Its own `train.py`, stage 2 from our export of a stage-1 model: the loss of a fast and of a slow step, projector and isolator
    afterwards, against the same from the directory that its stage 1 wrote.
"""

import argparse
import importlib
import importlib.machinery
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "tests/published-code"
LAYOUTS = PUBLISHED / "layouts"
PROMPT = "What is in the picture ?"
TOLERANCE = 1e-5
LOGGED = []


class Float32:
    """torch, with float32 in the place of float16."""

    def __getattr__(self, name):
        return torch.float32 if name == "float16" else getattr(torch, name)


def stand_in():
    """Stands in for wandb, and records what is logged."""
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.log = LOGGED.append
    wandb.init = lambda *args, **kwargs: None
    sys.modules["wandb"] = wandb
    os.environ["WANDB_DISABLED"] = "true"


def run(program, *arguments):
    done = subprocess.run([program, "--quiet", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def load(path, base, name):
    builder = importlib.import_module("llava.model.builder")
    builder.torch = Float32()
    tokenizer, model, processor, _ = builder.load_pretrained_model(str(path), base and str(base), name, device="cpu")
    return tokenizer, model.eval(), processor


def prompt_ids(tokenizer):
    from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import tokenizer_image_token

    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{PROMPT}")
    conversation.append_message(conversation.roles[1], None)
    return tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX)


def logits(loaded, ids):
    from PIL import Image
    from llava.mm_utils import process_images

    _, model, processor = loaded
    picture = Image.open(PUBLISHED / "data/img84/b.png").convert("RGB")
    pixels = process_images([picture], processor, model.config)
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), images=pixels.float()).logits[0]


def check_logits(program, name, original, base, exported):
    """Steps 1 and 2 for one directory of the published trainer's and our export of it."""
    theirs = load(original, base, f"llava-{name}" + ("-lora" if base else ""))
    ours = load(exported, None, f"llava-{name}")
    ids = prompt_ids(theirs[0])
    assert prompt_ids(ours[0]) == ids, f"{name}: other token ids from the exported tokenizer"
    apart = (logits(theirs, ids) - logits(ours, ids)).abs().max().item()
    print(f"{name}: their logits of our export are {apart:.2e} from those of their directory")
    assert apart <= TOLERANCE, name

    answer = json.loads(run(
        program, "generate", "--model", exported, "--image", PUBLISHED / "data/img84/b.png", "--prompt", PROMPT,
        "--template", "vicuna_v1", "--max-new-tokens", 8, "--json",
    ))
    assert answer["prompt_ids"] == ids, f"{name}: {answer['prompt_ids']} for {ids}"
    table = logits(ours, ids + answer["ids"]).log_softmax(-1)
    visual = len(table) - len(ids) - len(answer["ids"])
    at = len(ids) + visual - 1
    found = [table[at + k, token].item() for k, token in enumerate(answer["ids"])]
    apart = max(abs(a - b) for a, b in zip(found, answer["log_probs"]))
    print(f"{name}: our log-probabilities are {apart:.2e} from theirs")
    assert apart <= TOLERANCE, name


def train(checkpoint, stage1, tower, out, slow):
    """One step of their train.py at rate 0 from the files of a stage 1: its loss, and the parts that it saves."""
    LOGGED.clear()
    train_module = importlib.import_module("llava.train.train")
    importlib.import_module("llava.model.language_model.llava_llama").random = types.SimpleNamespace(
        random=lambda: 0.0 if slow else 0.5
    )
    train_module.torch = Float32()
    try:
        importlib.import_module("deepspeed")
    except ImportError:
        # It asks deepspeed whether a parameter is in pieces.
        train_module.maybe_zero_3 = lambda param, **_: param.detach().cpu().clone()
    arguments = {
        "model_name_or_path": LAYOUTS / "base", "version": "v1", "data_path": PUBLISHED / "data/mix.json",
        "image_folder": PUBLISHED / "data/img84", "vision_tower": tower,
        "pretrain_mm_mlp_adapter": stage1 / "mm_projector.bin", "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad", "output_dir": out, "max_steps": 1, "per_device_train_batch_size": 3,
        "learning_rate": 0, "weight_decay": 0, "model_max_length": 2048, "lazy_preprocess": True, "report_to": "none",
        "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "dataloader_num_workers": 0,
    }
    sys.argv = ["train.py"] + [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
    train_module.train()
    numbers = {key: value for key, value in LOGGED[0].items() if value == value}
    isolator = torch.load(out / "mode_isolator.bin")["weight"]
    return numbers, isolator


def check_stage2(checkpoint, exported, tower, work):
    """Step 3."""
    own = torch.load(LAYOUTS / "b-stage1/mode_isolator.bin")["weight"]
    for name in ("mm_projector.bin", "mode_isolator.bin"):
        theirs, ours = torch.load(LAYOUTS / "b-stage1" / name), torch.load(exported / name)
        assert list(theirs) and sorted(theirs) == sorted(ours), (list(theirs), list(ours))
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs), name
    for slow in (False, True):
        mode = "slow" if slow else "fast"
        theirs, _ = train(checkpoint, LAYOUTS / "b-stage1", tower, work / f"theirs-{mode}", slow)
        ours, isolator = train(checkpoint, exported, tower, work / f"ours-{mode}", slow)
        apart = max(abs(theirs[key] - ours[key]) for key in theirs)
        print(f"stage 2, {mode} step from our export: {ours}, {apart:.2e} from the same from their stage 1")
        assert theirs.keys() == ours.keys() and apart <= TOLERANCE
        assert torch.equal(isolator, own), "the isolator that stage 2 saves is not the one it was given"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--program", default=ROOT / "target/debug/dualspeed", type=Path)
    parser.add_argument("--work", default=Path("published-check"), type=Path)
    args = parser.parse_args()
    program, work = args.program.resolve(), args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(args.checkout.resolve()))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    stand_in()

    base, tower = LAYOUTS / "base", LAYOUTS / "tower"
    # Their config.json names the tower from the directory that the trainer ran in.
    (work / "base").mkdir(exist_ok=True)
    if not (work / "base/clip-tiny-84").exists():
        (work / "base/clip-tiny-84").symlink_to(tower)
    os.chdir(work)
    export = ("export", "--overwrite", "--format", "llava", "--vision-tower", tower)
    run(program, *export, "--model", LAYOUTS / "a-full", "--out", work / "llava-full")
    run(program, *export, "--model", base, "--adapter", LAYOUTS / "c-lora", "--out", work / "llava-merged")
    run(program, *export, "--model", base, "--part", LAYOUTS / "b-stage1", "--out", work / "llava-stage1")
    check_logits(program, "full", LAYOUTS / "a-full", None, work / "llava-full")
    check_logits(program, "merged", LAYOUTS / "c-lora", base, work / "llava-merged")
    check_stage2(args.checkout, work / "llava-stage1", work / "llava-stage1/vision_tower", work)
    print("all as published")


if __name__ == "__main__":
    main()
