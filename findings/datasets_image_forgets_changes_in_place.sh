#!/bin/sh
# datasets.Image: a picture that was changed in place is stored as the file that it was opened from.
#
# A PIL picture that still knows its file name is encoded as that name; its pixels are never looked at.
# Image.thumbnail, ImageDraw, paste and seek change a picture in place and leave the name there. So a set of thumbnails
# holds the pictures in full size, faces that were painted over are back, and each frame of an animation is the first
# one; save_to_disk then embeds those files. Operations that return a new picture (resize, crop,
# convert) are stored as they are. Whoever prepares image-text pairs with datasets pays, without a warning;
# picture.copy() before handing it over helps.
#
# datasets 5.2.0, Pillow 13.0.0, pyarrow 26.0.1, numpy 2.4.6, Python 3.11.7, 2026-11-29, seen:
#   thumbnail in place: (64, 48) handed over, (256, 192) in the set, (256, 192) after save_to_disk; resize: (64, 48)
#   map that returns a thumbnail: (256, 192)
#   painted over: brightest pixel 0 handed over, 255 in the set; its copy: 0
#   frames 0, 1, 2 of an animation of values 0, 100, 200: [0, 0, 0] in the set
# Fails if what is stored is what was handed over.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile datasets==5.2.0 Pillow==13.0.0 pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import datasets
import numpy as np
from PIL import Image, ImageDraw

datasets.disable_progress_bars()
Image.fromarray(np.full((192, 256, 3), 255, np.uint8)).save("white.jpg")
frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 100, 200)]
frames[0].save("three.gif", save_all=True, append_images=frames[1:])


def stored(picture):
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": [picture]}, features=features)


def thumbnail(row):
    picture = Image.open(row["path"])
    picture.thumbnail((64, 64))
    return {"image": picture}


def frame(i):
    picture = Image.open("three.gif")
    picture.seek(i)
    return picture


small = thumbnail({"path": "white.jpg"})["image"]
found = stored(small)
found.save_to_disk("saved")
sizes = small.size, found[0]["image"].size, datasets.load_from_disk("saved")[0]["image"].size
new = stored(Image.open("white.jpg").resize((64, 48)))[0]["image"].size
print(f"#   thumbnail in place: {sizes[0]} handed over, {sizes[1]} in the set, ", end="")
print(f"{sizes[2]} after save_to_disk; resize: {new}")
mapped = datasets.Dataset.from_dict({"path": ["white.jpg"]}).map(thumbnail)[0]["image"].size
print(f"#   map that returns a thumbnail: {mapped}")
painted = Image.open("white.jpg")
ImageDraw.Draw(painted).rectangle((0, 0, 256, 192), fill=(0, 0, 0))
pictures = painted, stored(painted)[0]["image"], stored(painted.copy())[0]["image"]
given, kept, copied = (int(np.asarray(x).max()) for x in pictures)
print(f"#   painted over: brightest pixel {given} handed over, {kept} in the set; its copy: {copied}")
values = [np.asarray(stored(frame(i))[0]["image"].convert("L")).max().item() for i in range(3)]
print(f"#   frames 0, 1, 2 of an animation of values 0, 100, 200: {values} in the set")
assert [np.asarray(frame(i).convert("L")).max().item() for i in range(3)] == [0, 100, 200]
assert sizes == ((64, 48), (256, 192), (256, 192)) and mapped == (256, 192) and new == (64, 48)
assert (given, kept, copied) == (0, 255, 0)
assert values == [0, 0, 0]
PYTHON
