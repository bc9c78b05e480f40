#!/usr/bin/env python3
"""Compares prompts: what transformers' AutoProcessor makes of questions with an exported model's files, and what
`dualspeed generate` makes of them, token for token; and the log-probabilities of what is said.

    cargo build -p dualspeed
    target/debug/dualspeed export --run RUN --format hf --out OUT
    venv/bin/python scripts/check_chat_template.py --dualspeed target/debug/dualspeed --image PICTURE.png OUT..

Prints a line for every directory and question; fails if ids differ, or log-probabilities by more than 1e-4. Needs torch,
transformers (5.17), pillow.
"""

import argparse
import json
import subprocess
import sys

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

QUESTIONS = [
    ("What is in the picture?", True, None),
    ("Colour?", True, "Answer the questions."),
    ("How many cups are there? Two or 3,\n\nor none; naïve 日本", True, None),
    ("Say something.", False, None),
    ("Say something.", False, "Be brief."),
]


def ours(args, directory, question, with_image, system):
    command = [args.dualspeed, "-q", "generate", "--model", directory, "--prompt", question, "--json", "--max-new-tokens", "4"]
    command += ["--image", args.image] if with_image else []
    command += ["--system", system] if system is not None else []
    result = subprocess.run(command, capture_output=True, text=True)
    return json.loads(result.stdout) if result.returncode == 0 else result.stderr.strip()


def theirs(processor, question, image, system):
    content = ([{"type": "image"}] if image else []) + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    begun = processor.tokenizer.bos_token is not None and text.startswith(processor.tokenizer.bos_token)
    return processor(text=text, images=image, return_tensors="pt", add_special_tokens=not begun)


def collapse(ids, image):
    """One -200 for every run of visual tokens."""
    short = []
    for token in ids:
        if token != image or not short or short[-1] != -200:
            short.append(-200 if token == image else token)
    return short


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dualspeed", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--backend", default="pil", help="of the image processor: pil or torchvision")
    parser.add_argument("directories", nargs="+")
    args = parser.parse_args()
    picture, failed = Image.open(args.image).convert("RGB"), False
    print("transformers", transformers.__version__)
    for directory in args.directories:
        processor = AutoProcessor.from_pretrained(directory, backend=args.backend)
        model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
        for question, with_image, system in QUESTIONS:
            found = ours(args, directory, question, with_image, system)
            if isinstance(found, str):
                print(f"{directory}: {question!r} {system!r}: {found}")
                continue
            inputs = theirs(processor, question, picture if with_image else None, system)
            ids = inputs["input_ids"][0].tolist()
            same = collapse(ids, processor.image_token_id) == found["prompt_ids"]
            said = torch.tensor([found["ids"]])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], said], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs.pop("mm_token_type_ids", None)
            with torch.no_grad():
                logits = model(**inputs).logits[0].log_softmax(-1)
            pairs = enumerate(zip(found["ids"], found["log_probs"]))
            worst = max(abs(logits[len(ids) - 1 + k, token].item() - p) for k, (token, p) in pairs)
            print(f"{directory}: {question!r} {system!r}: ids {'equal' if same else 'DIFFER'}, log-probabilities {worst:.1e}")
            if not same:
                print("  theirs", collapse(ids, processor.image_token_id), "\n  ours  ", found["prompt_ids"])
            failed |= not same or worst > 1e-4
    sys.exit(failed)


if __name__ == "__main__":
    main()
