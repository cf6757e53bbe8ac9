#!/bin/sh
# tensorflow-datasets as_data_source: whether OpenCV is installed decides what a picture with a palette is.
#
# The data source, which jax pipelines read without TensorFlow, decodes with OpenCV if it can be imported and with
# Pillow otherwise. OpenCV looks palettes up and Pillow does not here. So masks of classes as palette PNG (the form of
# Pascal VOC) are class ids with Pillow alone and, once opencv-python is installed, colours in three channels, though
# the feature says LabeledImage of shape (None, None, 1); photographs as palette PNG are right with OpenCV and, with
# Pillow, palette indices, repeated in three channels as gray. CMYK JPEG, which ImageNet has, are RGB with OpenCV and
# four channels of CMYK with Pillow, though the feature says (None, None, 3). The declared shape is not checked and
# nothing is said. Installing or removing a package changes what is trained on; decoders=SkipDecoding and a decoder of
# one's own are the way out.
#
# tensorflow-datasets 4.9.10, array_record 0.8.6, opencv-python-headless 5.0.0.93, Pillow 13.0.0, numpy 2.4.6, Python
# 3.11.7, 2026-11-29, seen (shape and first pixel; the palette has (43, 85, 217) at 15):
#   Pillow alone  mask of class 15: (8, 16, 1) [15]; photograph: (8, 16, 3) [15, 15, 15]; CMYK: (8, 16, 4) [255, 255, 255, 0]
#   with OpenCV   mask of class 15: (8, 16, 3) [43, 85, 217]; photograph: (8, 16, 3) [43, 85, 217]; CMYK: (8, 16, 3) [1, 1, 1]
# Fails if both decode alike, or otherwise than said here.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile tensorflow-datasets==4.9.10 array_record==0.8.6 importlib_resources==7.1.0 Pillow==13.0.0 numpy==2.4.6
cat > "$folder/read.py" <<'PYTHON'
import io
import sys
import tempfile

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def encoded(picture, form):
    data = io.BytesIO()
    picture.save(data, form)
    return data.getvalue()


def read(feature, data):
    """What the data source yields of one picture: (shape, first pixel)."""

    class One(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"image": feature}))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"image": data}

    with tempfile.TemporaryDirectory() as folder:
        builder = One(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
        pixels = builder.as_data_source("train")[0]["image"]
    return pixels.shape, pixels[0, 0].tolist()


indices = Image.fromarray(np.full((8, 16), 15, np.uint8))
indices.putpalette([c for i in range(256) for c in ((i * 37) % 256, (i * 91) % 256, (i * 151) % 256)])
palette = encoded(indices, "PNG")
cmyk = encoded(Image.new("RGB", (16, 8)).convert("CMYK"), "JPEG")
labels = tfds.features.LabeledImage(labels=21, shape=(None, None, 1), encoding_format="png")
mask = read(labels, palette)
photograph = read(tfds.features.Image(shape=(None, None, 3), encoding_format="png"), palette)
print_job = read(tfds.features.Image(shape=(None, None, 3)), cmyk)
with_opencv = sys.argv[1] == "with OpenCV"
words = [f"{name}: {shape} {pixel}" for name, (shape, pixel) in (("mask of class 15", mask), ("photograph", photograph), ("CMYK", print_job))]
print(f"#   {sys.argv[1]:13s} {'; '.join(words)}")
if with_opencv:
    assert mask == photograph == ((8, 16, 3), [43, 85, 217])
    assert print_job[0] == (8, 16, 3) and max(print_job[1]) < 8
else:
    assert mask == ((8, 16, 1), [15]) and photograph == ((8, 16, 3), [15, 15, 15])
    assert print_job == ((8, 16, 4), [255, 255, 255, 0])
PYTHON
"$folder/venv/bin/python" "$folder/read.py" "Pillow alone"
"$folder/venv/bin/pip" install -q --no-compile opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" "$folder/read.py" "with OpenCV"
