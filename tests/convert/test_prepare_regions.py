"""Boxes with phrases and false texts of every layout, in pixels of the stored image, and what is dropped of them."""

import json
import re

import numpy as np
import prepare_trees as trees
import pytest
from PIL import Image
from test_prepare import prepared

from detailclip_jax.config import run_config
from detailclip_jax.convert import regions
from detailclip_jax.convert.examples import Rejected
from detailclip_jax.convert.regions import Region
from detailclip_jax.convert.set_report import summary
from detailclip_jax.data import pipeline
from detailclip_jax.data.sources import Records

WIDTH, HEIGHT = 24, 16  # of the images
OWN = {
    "image": "1.jpg",
    "caption": "a dog and a ball",
    "boxes": [[2, 3, 12, 15], [12.5, 4, 30, 8], [0, 0, 24, 16], [5, 5, 5, 9], [1, 1, 9, 9]],
    "phrases": ["a dog", "a ball outside", ["a lawn", "green grass"], "a line", ""],
    "phrase_negatives": [["a cat", "a fox"], [], ["sand"], [], []],
    "negatives": ["a dog without a ball"],
}


def one(folder):
    (example,) = (lambda records: [records[index] for index in range(len(records))])(Records(folder, "train"))
    return example


def lines(folder, *rows):
    for number in (1, 2):
        trees.write(folder / f"{number}.jpg", trees.jpeg(number, WIDTH, HEIGHT))
    return trees.write(folder / "table.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_own_json_lines(tmp_path):
    part = prepared(lines(tmp_path, OWN), tmp_path / "out", kind="jsonl")
    example = one(tmp_path / "out")
    assert example["captions"] == ("a dog and a ball",)
    assert example["boxes"] == [[2, 3, 12, 15], [0, 0, 24, 16]]
    assert example["phrases"] == ["a dog", ["a lawn", "green grass"]]
    assert example["phrase_negatives"] == [["a cat", "a fox"], ["sand"]]
    assert example["negatives"] == ["a dog without a ball"]
    (line,) = (line for line in summary(part) if line.startswith("regions"))
    assert line == (
        "regions     2 boxes of 1 images; dropped: 1 outside the image, 1 empty, 1 without a phrase; 1 false captions"
    )


def test_boxes_without_any_phrases_are_counted_as_dropped(tmp_path):
    row = {"image": "1.jpg", "caption": "a dog", "boxes": [[2, 3, 12, 15], [1, 1, 9, 9]]}
    part = prepared(lines(tmp_path, row), tmp_path / "out", kind="jsonl")
    (line,) = (line for line in summary(part) if line.startswith("regions"))
    assert line == "regions     0 boxes of 0 images; dropped: 2 without a phrase"


@pytest.mark.parametrize("end", [1.0, 1.0000001])  # computed shares exceed 1 by their rounding
def test_boxes_in_shares_become_pixels(tmp_path, end):
    row = {**OWN, "boxes": [[0.25, 0.5, 0.75, end]], "phrases": ["a dog"], "phrase_negatives": None}
    prepared(lines(tmp_path, row), tmp_path / "out", kind="jsonl")
    example = one(tmp_path / "out")
    assert example["boxes"] == [[6, 8, 18, 16]]
    assert "phrase_negatives" not in example


def test_boxes_are_those_of_the_smaller_image(tmp_path):
    prepared(lines(tmp_path, {**OWN, "boxes": [[12, 4, 24, 8]] * 5}), tmp_path / "out", kind="jsonl", max_side=12)
    assert one(tmp_path / "out")["boxes"][0] == [6, 2, 12, 4]


def test_boxes_of_an_image_that_is_stored_on_its_side_are_upright(tmp_path):
    image = Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6  # turned by 90 degrees: 16 wide, 24 high
    path = lines(tmp_path, {**OWN, "boxes": [[0.5, 0.5, 1.0, 1.0]] * 5})
    image.save(tmp_path / "1.jpg", exif=exif)
    prepared(path, tmp_path / "out", kind="jsonl")
    assert one(tmp_path / "out")["boxes"][0] == [8, 12, 16, 24]


def test_examples_without_boxes_stay_beside_those_with_them(tmp_path):
    part = prepared(lines(tmp_path, OWN, {"image": "2.jpg", "caption": "a cat"}), tmp_path / "out", kind="jsonl")
    records = Records(tmp_path / "out", "train")
    assert [("boxes" in records[index], records[index]["captions"][0][:5]) for index in (0, 1)] == [
        (True, "a dog"),
        (False, "a cat"),
    ]
    assert part["num_examples"] == 2


@pytest.mark.parametrize("kind", ["paths", "bytes"])
def test_own_parquet(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines(tmp_path)
    image = "1.jpg" if kind == "paths" else trees.jpeg(1, WIDTH, HEIGHT)
    row = {**OWN, "image": image, "phrases": ["a dog", "a ball", "a lawn", "a line", ""]}
    other = {"image": image, "caption": "a cat"}
    parquet.write_table(pa.Table.from_pylist([row, other]), tmp_path / "table.parquet")
    prepared(tmp_path / "table.parquet", tmp_path / "out", kind="parquet")
    records = Records(tmp_path / "out", "train")
    assert records[0]["boxes"] == [[2, 3, 12, 15], [0, 0, 24, 16]]
    assert records[0]["negatives"] == ["a dog without a ball"]
    assert "boxes" not in records[1]


GRIT = {
    "caption": "a brown dog on the grass",
    "noun_chunks": [
        [0, 11, 0.0, 0.25, 0.5, 1.0, 0.9],
        [15, 24, 0.0, 0.5, 1.0, 1.0, 0.8],
        [30, 40, 0.5, 0.5, 1.0, 1.0, 0.8],  # behind the caption's end: without a phrase
    ],
    "ref_exps": [[0, 24, 0.0, 0.25, 0.5, 1.0, 0.9]],
    "width": 640,
    "height": 480,
}


def test_grit_in_a_parquet_and_in_tars_of_img2dataset(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    image = trees.jpeg(1, WIDTH, HEIGHT)
    rows = [{**GRIT, "key": "0001", "status": "success", "url": "x", "image": image}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    prepared(tmp_path / "table.parquet", tmp_path / "a", kind="parquet")
    trees.write_tar(tmp_path / "tars/00000.tar", trees.sample("0001", 1))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "tars/00000.parquet")
    prepared(tmp_path / "tars", tmp_path / "b", kind="img2dataset-parquet")
    for folder in (tmp_path / "a", tmp_path / "b"):
        example = one(folder)
        assert example["boxes"] == [[0, 4, 12, 16], [0, 8, 24, 16]]
        assert example["phrases"] == [["a brown dog on the grass", "a brown dog"], "the grass"]
        assert example["captions"] == ("a brown dog on the grass",)


def test_finehard(tmp_path):
    false = [f"a cat {number}" for number in range(10)]
    info = {"bbox": [0.0, 0.25, 0.5, 1.0, 0.9], "short_expr": "a dog", "long_expr": "a brown dog that sits"}
    image = {
        "f_path": "part/1.jpg",
        "caption": "a long text",
        "short_caption": "a dog",
        "bbox_info": [
            {**info, "flag_short_neg": 1, "short_expr_negs": {str(n): text for n, text in enumerate(false)}},
            {**info, "bbox": [0.5, 0.5, 1.0, 1.0, 0.5], "flag_short_neg": 0, "short_expr_negs": {}},
        ],
    }
    trees.write(tmp_path / "part/1.jpg", trees.jpeg(1, WIDTH, HEIGHT))
    path = trees.write(tmp_path / "file.jsonl", json.dumps([image, {"f_path": 3, "caption": [1]}, {"f_path": None}]))
    part = prepared(path, tmp_path / "out", kind="finehard", images=str(tmp_path))
    example = one(tmp_path / "out")
    assert (example["key"], example["caption"], example["short_caption"]) == ("part/1.jpg", "a long text", "a dog")
    assert example["boxes"] == [[0, 4, 12, 16], [12, 8, 24, 16]]
    assert example["phrases"] == [["a dog", "a brown dog that sits"]] * 2
    assert example["phrase_negatives"] == [false, []]
    assert part["rejected"] == {"bad text": 1, "bad row": 1}


@pytest.mark.parametrize("content", ["{}", "[1]", '{"f_path": "a"}\n{"f_path": "b"}'])
def test_other_files_are_no_finehard(tmp_path, content):
    path = trees.write(tmp_path / "file.json", content)
    with pytest.raises(ValueError, match=r"file\.json"):
        prepared(path, tmp_path / "out", kind="finehard", images=str(tmp_path))


INSTANCES = {
    "images": [{"id": 7, "file_name": "1.jpg"}, {"id": 8, "file_name": "2.jpg"}],
    "annotations": [
        {"image_id": 7, "bbox": [2, 3, 10, 12], "category_id": 18, "iscrowd": 0},
        {"image_id": 7, "bbox": [0, 0, 24, 16], "category_id": 18, "iscrowd": 1},
        {"image_id": 7, "bbox": [4, 4, 8, 8], "category_id": 18, "caption": "the dog's ball"},
    ],
    "categories": [{"id": 18, "name": "dog"}],
}
CAPTIONS = {**INSTANCES, "annotations": [{"image_id": 7, "caption": "a dog"}, {"image_id": 8, "caption": "none"}]}


@pytest.mark.parametrize("with_captions", [True, False])
def test_coco_instances_with_and_without_captions(tmp_path, with_captions):
    lines(tmp_path)
    paths = [trees.write_json(tmp_path / "instances.json", INSTANCES)]
    paths += [trees.write_json(tmp_path / "captions.json", CAPTIONS)] if with_captions else []
    part = prepared(paths, tmp_path / "out", kind="coco", images=str(tmp_path))
    records = Records(tmp_path / "out", "train")
    assert [records[n]["captions"] for n in (0, 1)] == ([("a dog",), ("none",)] if with_captions else [(), ()])
    assert records[0]["boxes"] == [[2, 3, 12, 15], [4, 4, 12, 12]]
    assert records[0]["phrases"] == ["dog", "the dog's ball"]
    assert "boxes" not in records[1]
    assert "dropped: 1 crowds" in "\n".join(summary(part))


def test_boxes_of_an_image_in_several_files_of_instances_are_joined(tmp_path):
    lines(tmp_path)
    more = {**INSTANCES, "annotations": [{"image_id": 7, "bbox": [0, 0, 8, 8], "category_id": 18}]}
    paths = [trees.write_json(tmp_path / f"{n}.json", each) for n, each in enumerate((INSTANCES, more, CAPTIONS))]
    prepared(paths, tmp_path / "out", kind="coco", images=str(tmp_path))
    assert Records(tmp_path / "out", "train")[0]["boxes"] == [[2, 3, 12, 15], [4, 4, 12, 12], [0, 0, 8, 8]]


def test_coco_instances_whose_first_annotation_has_no_box_are_no_captions_file(tmp_path):
    content = {**INSTANCES, "annotations": [{"image_id": 7, "category_id": 18}, *INSTANCES["annotations"]]}
    path = trees.write_json(tmp_path / "instances.json", content)
    with pytest.raises(ValueError, match="is not a file of instances: KeyError\\('bbox'\\)"):
        prepared(path, tmp_path / "out", kind="coco", images=str(tmp_path))


@pytest.mark.parametrize("change", [{"bbox": [1, 2, 3]}, {"category_id": 19}, {"bbox": "x"}])
def test_coco_instances_of_another_form_are_refused(tmp_path, change):
    content = {**INSTANCES, "annotations": [{**INSTANCES["annotations"][0], **change}]}
    path = trees.write_json(tmp_path / "instances.json", content)
    with pytest.raises(ValueError, match="is not a file of instances"):
        prepared(path, tmp_path / "out", kind="coco", images=str(tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"boxes": [[0, 0, 1, 1]], "phrases": []},
        {"boxes": [[0, 0, 1]], "phrases": ["a"]},
        {"boxes": [[0, 0, 1, "x"]], "phrases": ["a"]},
        {"boxes": [[0, 0, 1, float("nan")]], "phrases": ["a"]},
        {"ref_exps": [[0, 5, 0.1, 0.1, 0.5, 0.5, 1.0]], "caption": None},
        {"bbox_info": [{"bbox": [0, 0, 1], "short_expr": "a"}]},
    ],
)
def test_boxes_that_are_wrong_reject_their_example(values):
    with pytest.raises(Rejected, match="bad boxes: "):
        regions.read(values)


@pytest.mark.parametrize(
    "values",
    [
        {"boxes": 3, "phrases": ["a"]},
        {"boxes": [{"x": 1}], "phrases": ["a"]},
        {"boxes": [[0, 0, 1, 1]], "phrases": [{"a": 1}]},
        {"boxes": [[0, 0, 1, 1]], "phrases": "a dog"},
        {"negatives": [1]},
        {"negatives": {"a": "b"}},
        {"noun_chunks": ["a dog", "the grass"], "caption": "a dog on the grass"},
        {"noun_chunks": [[0, 5], [9, 18]]},
        {"ref_exps": [["a dog", 0, 5]]},
        {"bbox_info": {"bbox": [0, 0, 1, 1]}},
        {"bbox_info": [{"short_expr": "a"}]},
    ],
)
def test_a_field_of_another_form_is_left_out_and_counted(tmp_path, values):
    row = {"image": "1.jpg", "caption": "a dog", **values}
    part = prepared(lines(tmp_path, row), tmp_path / "out", kind="jsonl")
    assert {*one(tmp_path / "out")} & {*regions.FIELDS} == set()
    (line,) = (line for line in summary(part) if line.startswith("regions"))
    assert re.search(r"0 boxes of 0 images; dropped: 1 fields '\w+' of another form", line)


def test_only_a_field_of_another_form_is_left_out():
    values = {**OWN, "phrase_negatives": 3, "noun_chunks": ["a dog"], "negatives": ["no dog"]}
    found, negatives = regions.read(values)
    assert [region.phrases for region in found[:2]] == [("a dog",), ("a ball outside",)]
    assert not any(region.negatives for region in found) and negatives == ("no dog",)
    assert [region.dropped[:24] for region in found[5:]] == ["fields 'phrase_negatives", "fields 'noun_chunks' of "]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"phrases": ["a"]},
        {"phrases": 3},
        {"boxes": 3},
        {"boxes": None, "phrases": None},
        {"negatives": float("nan")},
    ],
)
def test_other_examples_have_no_regions(values):
    assert regions.read(values) == ((), ())


def test_a_box_that_is_nearly_inside_is_cut():
    fields, counts = regions.of_record([Region((-1, 0, 19, 10), ("a",))], (), (40, 20), (20, 10))
    assert (fields["boxes"], counts) == ([[0, 0, 9.5, 5]], {"boxes": 1, "images with boxes": 1})


def test_prepared_boxes_reach_the_batches_of_a_run(tmp_path):
    rows = [{**OWN, "caption": f"a dog {number}"} for number in range(3)] + [{"image": "2.jpg", "caption": "a cat"}]
    prepared(lines(tmp_path, *rows), tmp_path / "out", kind="jsonl")
    config = run_config.load("configs/stickers.py:method=clip")
    config.data.source, config.data.path, config.data.held_out = "records", str(tmp_path / "out"), 0
    config.batch_size, config.data.regions, config.data.negatives = 4, 2, 2
    config.views.crops.large.kind = "whole"
    with pipeline.open_pipeline(config, pipeline.open_source(config)) as batches:
        batch = next(batches)
    assert sorted(batch["regions_valid"].sum((1, 2)).tolist()) == [0, 2, 2, 2]
    boxes = {tuple(np.round(box, 3)) for box in batch["regions"][batch["regions_valid"]].tolist()}
    assert boxes == {(5.333, 12, 32, 60), (0, 0, 64, 64)}  # of an image of 24 x 16 pixels, squashed to 64 x 64
    assert sorted(batch["false_valid"].sum(1).tolist()) == [0, 1, 1, 1]
    assert sorted(batch["region_text_valid"].sum((1, 2)).tolist()) == [0, 5, 5, 5]
