#!/usr/bin/env python3
"""Build the emoji atlas embedded in dualspeed-data.

Needs python3, Pillow (`pip install pillow`) and npm. Downloads four packages from the npm registry
(no install scripts are run), and writes into crates/dualspeed-data/assets:

    {fluent,google,twitter}.png   one RGBA sheet per vendor, COLUMNS tiles a row, class i at tile i
    atlas.json                    names, hexcodes, groups, vendors and licences
    LICENSES.md                   attribution of the drawings

    python3 scripts/build_atlas.py [--out DIR] [--packages DIR_WITH_TGZ] [--contact-sheet PNG]
"""

import argparse
import io
import json
import pathlib
import subprocess
import tarfile
import tempfile

from PIL import Image, ImageDraw

TILE = 48
COLUMNS = 16
ROOT = pathlib.Path(__file__).resolve().parent.parent

LABELS = "emojibase-data@17.0.0"
VENDORS = [
    # name, package, path of one drawing, licence, copyright
    ("google", "emoji-datasource-google@16.0.0", "package/img/google/64/{hex}.png",
     "Apache-2.0", "Noto Emoji, Google LLC"),
    ("twitter", "emoji-datasource-twitter@16.0.0", "package/img/twitter/64/{hex}.png",
     "CC-BY-4.0", "Twemoji, Twitter Inc. and other contributors"),
    ("fluent", "@lobehub/fluent-emoji-3d@1.1.0", "package/assets/{hex}.webp",
     "MIT", "Fluent Emoji, Microsoft Corporation; packaged by LobeHub"),
]

# Ordered: any prefix is a diverse set of drawings that no one confuses. Names are single lowercase
# words, none of which is a colour, a number or a word of the scene questions.
CLASSES = """
cat 1f431        apple 1f34e      car 1f697        ball 26bd        tree 1f333       pizza 1f355
key 1f511        fish 1f41f       guitar 1f3b8     rocket 1f680     umbrella 2614    cake 1f382
clock 23f0       house 1f3e0      banana 1f34c     robot 1f916      star 2b50        frog 1f438
book 1f4d6       crown 1f451      mushroom 1f344   boat 26f5        balloon 1f388    dice 1f3b2
penguin 1f427    carrot 1f955     bicycle 1f6b2    bell 1f514       cactus 1f335     ghost 1f47b
hammer 1f528     grapes 1f347     train 1f686      heart 2764-fe0f  snail 1f40c      shoe 1f45f
camera 1f4f7     sunflower 1f33b  bread 1f35e      bulb 1f4a1       pumpkin 1f383    octopus 1f419
drum 1f941       scissors 2702-fe0f cheese 1f9c0   plane 2708-fe0f  snowman 26c4     chair 1fa91
bee 1f41d        hat 1f3a9        strawberry 1f353 ladybug 1f41e    bus 1f68c        gift 1f381
dog 1f436        trophy 1f3c6     burger 1f354     fire 1f525       whale 1f433      phone 260e-fe0f
lemon 1f34b      anchor 2693      pencil 270f-fe0f butterfly 1f98b  egg 1f95a        truck 1f69a
moon 1f319       skull 1f480      trumpet 1f3ba    pig 1f437        corn 1f33d       shirt 1f455
candle 1f56f-fe0f rainbow 1f308   turtle 1f422     donut 1f369      bed 1f6cf-fe0f   kite 1fa81
lion 1f981       cherry 1f352     magnet 1f9f2     panda 1f43c      taco 1f32e       volcano 1f30b
rabbit 1f430     avocado 1f951    broom 1f9f9      elephant 1f418   melon 1f349      helicopter 1f681
crab 1f980       spoon 1f944      tent 26fa        owl 1f989        popcorn 1f37f    compass 1f9ed
snake 1f40d      glasses 1f453    castle 1f3f0     unicorn 1f984    pear 1f350       lock 1f512
sushi 1f363      duck 1f986       bomb 1f4a3       telescope 1f52d  pineapple 1f34d  clover 1f340
"""


def classes():
    words = CLASSES.split()
    return list(zip(words[0::2], words[1::2]))


def fetch(package, directory):
    """The tarball of `package`, downloaded into `directory` unless it already lies there."""
    name = package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"
    path = directory / name
    if not path.exists():
        subprocess.run(["npm", "pack", "--ignore-scripts", "--silent", package], cwd=directory,
                       check=True, stdout=subprocess.DEVNULL)
    return tarfile.open(path)


def read(tar, name):
    return tar.extractfile(name).read()


def square(image):
    """Cropped to what is drawn, centred on a square, resampled with premultiplied alpha."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox())
    side = max(image.size)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas.convert("RGBa").resize((TILE, TILE), Image.LANCZOS).convert("RGBA")


def drawing(tar, pattern, hexcode):
    candidates = [hexcode, hexcode.replace("-fe0f", "")]
    for candidate in candidates:
        try:
            return square(Image.open(io.BytesIO(read(tar, pattern.format(hex=candidate)))))
        except KeyError:
            continue
    raise SystemExit(f"{tar.name} has no drawing for {hexcode}")


def contact_sheet(sheets, entries, path):
    """All classes with their names, the vendors side by side: for looking at, not embedded."""
    per_row, cell_w, cell_h = 6, 3 * TILE + 12, TILE + 16
    rows = (len(entries) + per_row - 1) // per_row
    page = Image.new("RGB", (per_row * cell_w, rows * cell_h), "white")
    draw = ImageDraw.Draw(page)
    for i, entry in enumerate(entries):
        x, y = i % per_row * cell_w, i // per_row * cell_h
        draw.text((x + 2, y), f"{i} {entry['name']}", fill="black")
        for j, sheet in enumerate(sheets):
            left, top = i % COLUMNS * TILE, i // COLUMNS * TILE
            tile = sheet.crop((left, top, left + TILE, top + TILE))
            page.paste(tile, (x + j * TILE, y + 13), tile)
    page.save(path)


def licences(entries):
    lines = [
        "# Licences of the embedded drawings",
        "",
        f"The sheets in this directory show {len(entries)} emoji in the drawings of three vendors, cropped",
        f"and resized to {TILE}x{TILE} by `scripts/build_atlas.py`. The drawings keep their own licences,",
        "which are not the licence of the code.",
        "",
        "| sheet | drawings | licence | taken from |",
        "|---|---|---|---|",
    ]
    for name, package, _, licence, copyright in VENDORS:
        lines.append(f"| `{name}.png` | {copyright} | {licence} | npm `{package}` |")
    lines += [
        "",
        "- Apache-2.0: <https://www.apache.org/licenses/LICENSE-2.0>",
        "- CC-BY-4.0: <https://creativecommons.org/licenses/by/4.0/>; changes made: cropped, resized.",
        "- MIT: <https://opensource.org/license/mit>",
        "",
        f"Groups and labels in `atlas.json` come from npm `{LABELS}` (MIT, Miles Johnson).",
        "",
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "crates/dualspeed-data/assets")
    parser.add_argument("--packages", type=pathlib.Path, help="folder with (or for) the npm tarballs")
    parser.add_argument("--contact-sheet", type=pathlib.Path)
    args = parser.parse_args()

    wanted = classes()
    names = [name for name, _ in wanted]
    assert len(set(names)) == len(names), "class names must be unique"
    assert all(n.isascii() and n.isalpha() and n.islower() for n in names), "single words only"

    with tempfile.TemporaryDirectory() as temporary:
        packages = (args.packages or pathlib.Path(temporary)).resolve()
        base = json.loads(read(fetch(LABELS, packages), "package/en/data.json"))
        labels = {e["hexcode"].lower().replace("-fe0f", ""): e for e in base}
        groups = json.loads(read(fetch(LABELS, packages), "package/meta/groups.json"))["groups"]
        entries = []
        for name, hexcode in wanted:
            entry = labels[hexcode.replace("-fe0f", "")]
            entries.append({"name": name, "hexcode": hexcode, "label": entry["label"],
                            "group": groups[str(entry["group"])]})
        args.out.mkdir(parents=True, exist_ok=True)
        sheets = []
        for vendor, package, pattern, _, _ in VENDORS:
            tar = fetch(package, packages)
            rows = (len(wanted) + COLUMNS - 1) // COLUMNS
            sheet = Image.new("RGBA", (COLUMNS * TILE, rows * TILE))
            for i, (_, hexcode) in enumerate(wanted):
                sheet.paste(drawing(tar, pattern, hexcode), (i % COLUMNS * TILE, i // COLUMNS * TILE))
            sheet.save(args.out / f"{vendor}.png", optimize=True)
            sheets.append(sheet)

    atlas = {
        "tile": TILE,
        "columns": COLUMNS,
        "vendors": [{"name": v, "sheet": f"{v}.png", "package": p, "licence": l, "copyright": c}
                    for v, p, _, l, c in VENDORS],
        "classes": entries,
    }
    (args.out / "atlas.json").write_text(json.dumps(atlas, indent=1) + "\n")
    (args.out / "LICENSES.md").write_text(licences(entries))
    if args.contact_sheet:
        contact_sheet(sheets, entries, args.contact_sheet)
    for path in sorted(args.out.iterdir()):
        print(f"{path.stat().st_size:>9} {path.name}")


if __name__ == "__main__":
    main()
