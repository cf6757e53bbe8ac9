"""TFDS builders, one file a data set, run as `python -m maeclip_jax.prepare.builders.NAME --help`.

`scenes` draws its own pictures; `image_folder`, `image_mask_folder` and `vqa_jsonl` take a person's own files;
`flickr30k`, `coco_a`, `voc_segmentation`, `vqav2` and `gqa` take official downloads. `manual`, `archive` and
`question_sets` hold what they share. None of them needs TensorFlow.
"""
