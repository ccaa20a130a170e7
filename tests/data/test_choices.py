"""Small trees in the published layouts of the sets of detail, and files that are not as published."""

import csv
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from detailclip_jax.data.labelled import CHOICES, KNOWN, Choice, open_choices, open_set, ready_choices
from detailclip_jax.data.labelled.choices import ORDERS, UNEVALUATED
from detailclip_jax.data.labelled.known_sets import LONG_CAPTIONS
from detailclip_jax.data.pipeline import read
from detailclip_jax.data.sources import BadRecord, MissingData
from detailclip_jax.evaluation.evaluation_sets import Sets

NUMBER = "000000000007.jpg"


def picture(value: int, size: tuple[int, int] = (20, 30), form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(stream, form)
    return stream.getvalue()


def put(path: pathlib.Path, data: bytes | str | list | dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = data if isinstance(data, bytes | str) else json.dumps(data)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# choices


def winoground(root: pathlib.Path) -> None:
    pairs = [{"id": n, "tag": "Object", "image_0": f"ex_{n}_img_0", "image_1": f"ex_{n}_img_1"} for n in range(2)]
    put(
        root / "winoground/examples.jsonl",
        lines(*({**row, "caption_0": f"a {row['id']} b", "caption_1": f"b {row['id']} a"} for row in pairs)),
    )
    for n in range(4):
        put(root / f"winoground/images/ex_{n // 2}_img_{n % 2}.png", picture(n))


def sugarcrepe(root: pathlib.Path) -> None:
    for name in ("add_obj", "add_att", "replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att"):
        case = {"filename": NUMBER, "caption": "a cat", "negative_caption": f"a cat {name}"}
        put(root / f"sugar-crepe/data/{name}.json", {"0": case, "1": case})
    put(root / f"coco/val2017/{NUMBER}", picture(7))


def sugarcrepe_pp(root: pathlib.Path) -> None:
    for name in ("replace_obj", "replace_attribute", "replace_rel", "swap_object", "swap_atribute"):
        case = {"id": 0, "filename": NUMBER, "caption": "a cat", "caption2": "one cat", "negative_caption": name}
        put(root / f"sugarcrepe_pp/{name}.json", [case])
    put(root / f"coco/images/val2017/{NUMBER}", picture(7))


def mmvp_vlm(root: pathlib.Path) -> None:
    rows = "Question ID,Type,Statement\n1,Camera Perspective,a dog from above\n2,Camera Perspective,a dog from below\n"
    put(root / "MMVP_VLM/Questions.csv", "\ufeff" + rows)
    for n in (1, 2):
        put(root / f"MMVP_VLM/MLLM_VLM Images/Camera Perspective/{n}.jpg", picture(n, form="JPEG"))


def aro(root: pathlib.Path, relations=("on", "next to"), cases: int = 25) -> None:
    box = {"image_path": "5.jpg", "bbox_x": 4, "bbox_y": 2, "bbox_w": 10, "bbox_h": 6}
    told = {**box, "true_caption": "a on b", "false_caption": "b on a"}
    put(root / "aro/visual_genome_relation.json", [{**told, "relation_name": name} for name in relations])
    put(
        root / "aro/visual_genome_attribution.json",
        [{**told, "attributes": ["old", "red"]}] * cases + [{**told, "attributes": ["new", "red"]}],
    )
    put(root / "aro/images/5.jpg", picture(5, form="JPEG"))


def fg_ovd(root: pathlib.Path) -> None:
    stored = {
        "images": [{"id": 3, "file_name": f"val2017/{NUMBER}", "width": 30, "height": 20}],
        "categories": [{"id": n, "name": f"a cup {n}"} for n in range(20)],
        "annotations": [
            {"image_id": 3, "bbox": [1.5, 2.5, 4, 5], "category_id": 0, "neg_category_ids": list(range(1, 15))},
            {"image_id": 3, "bbox": [0, 0, 9, 9], "category_id": 1, "neg_category_ids": [2]},
            {"image_id": 3, "bbox": [0, 0, 9, 9], "category_id": 1, "neg_category_ids": []},
        ],
    }
    for name in ("1_attributes", "2_attributes", "3_attributes", "shuffle_negatives"):
        put(root / f"fg_ovd/benchmarks/{name}.json", stored)
    put(root / f"coco/val2017/{NUMBER}", picture(9))


def test_which_sets_are_ready_is_known(tmp_path):
    sugarcrepe(tmp_path)
    winoground(tmp_path)
    put(tmp_path / "fg_ovd/readme.md", "")
    found = {each.name: each for each in ready_choices(tmp_path)}
    assert set(found) == set(CHOICES) and [name for name, each in found.items() if each.ready] == ["sugarcrepe"]
    assert found["sugarcrepe"].found == 14 and "4 choices, not 800" in found["winoground"].note
    assert "does not hold its files" in found["fg_ovd"].note and f"{tmp_path}/mmvp_vlm" in found["mmvp_vlm"].note


def test_winoground_has_both_images_of_a_pair(tmp_path):
    winoground(tmp_path)
    found = open_choices("winoground", tmp_path)
    assert found.rule == "pairs" and found.choices[2:] == [
        Choice(2, ("a 1 b", "b 1 a")),
        Choice(3, ("b 1 a", "a 1 b")),
    ]
    assert [read(found.data.source, i)[1][0, 0, 0] for i in range(4)] == [0, 1, 2, 3]
    assert [len(unit) for unit in found.units] == [2, 2]
    put(tmp_path / "winoground/images/ex_0_img_0.png", picture(99, (9, 9)))
    assert open_choices("winoground", tmp_path).data.fingerprint != found.data.fingerprint


def test_sugarcrepe_has_seven_groups_on_images_that_are_read_once(tmp_path):
    sugarcrepe(tmp_path)
    found = open_choices("sugarcrepe", tmp_path)
    assert len(found.choices) == 14 and len(found.data.source) == 1 and found.rule == "each"
    assert found.choices[0] == Choice(0, ("a cat", "a cat add_obj"), 1, "add_obj")
    assert [each.group for each in found.choices[::2]][-1] == "swap_att"


def test_sugarcrepe_pp_has_two_right_captions(tmp_path):
    sugarcrepe_pp(tmp_path)
    found = open_choices("sugarcrepe_pp", tmp_path)
    assert [each.group for each in found.choices] == [
        "replace_obj",
        "replace_att",
        "replace_rel",
        "swap_obj",
        "swap_att",
    ]
    assert found.choices[1] == Choice(0, ("a cat", "one cat", "replace_attribute"), 2, "replace_att")


def test_mmvp_vlm_takes_both_images_from_the_pattern_of_the_first(tmp_path):
    mmvp_vlm(tmp_path)
    found = open_choices("mmvp_vlm", tmp_path)
    above, below = "a photo of a dog from above", "a photo of a dog from below"
    assert found.rule == "paired images" and found.choices == [
        Choice(0, (above, below), 1, "camera_perspective"),
        Choice(1, (below, above), 1, "camera_perspective"),
    ]
    assert [int(read(found.data.source, i)[1].mean().round()) for i in range(2)] == [1, 2]


def test_aro_cuts_the_box_and_leaves_out_what_the_authors_leave_out(tmp_path):
    aro(tmp_path)
    relation, attribution = (open_choices(f"aro_{name}", tmp_path) for name in ("relation", "attribution"))
    assert [each.group for each in relation.choices] == ["on"] and relation.rule == "mean of groups"
    assert "next to" in UNEVALUATED.read_text().splitlines()
    assert {each.group for each in attribution.choices} == {"old_red"} and len(attribution.choices) == 25
    assert relation.choices[0].captions == ("a on b", "b on a")
    assert read(relation.data.source, 0)[1].shape == (6, 10, 3)


def test_fg_ovd_has_a_caption_and_up_to_ten_others_for_each_box(tmp_path):
    fg_ovd(tmp_path)
    found = open_choices("fg_ovd", tmp_path)
    assert [each.group for each in found.choices] == [n for n in ("hard", "medium", "easy", "trivial") for _ in (0, 1)]
    assert [len(each.captions) for each in found.choices[:2]] == [11, 2]
    assert found.choices[0].captions[:2] == ("a cup 0", "a cup 1") and len(found.data.source) == 2
    assert read(found.data.source, 0)[1].shape == (6, 5, 3)  # rows 2.5 to 7.5, columns 1.5 to 5.5, outwards


def test_orders_are_read_from_tables_with_images(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = {
        name: [f"{name} {row}" for row in range(5)] for name in ("correct_caption", *(f"hard_text_{n}" for n in "1234"))
    }
    images = [{"bytes": picture(row), "path": None} for row in range(5)]
    (tmp_path / "ARO-COCO-order/data").mkdir(parents=True)
    table = pa.table({"images": images, **texts})
    parquet.write_table(table, tmp_path / "ARO-COCO-order/data/test-0.parquet", row_group_size=2)
    found = open_choices("aro_coco_order", tmp_path)
    assert found.choices[3] == Choice(3, tuple(texts[name][3] for name in texts))
    assert [read(found.data.source, i)[1][0, 0, 0] for i in range(5)] == [0, 1, 2, 3, 4]
    put(tmp_path / "ARO-COCO-order/data/test-0.parquet", b"PAR1 no table")
    with pytest.raises(MissingData, match=r"test-0.parquet is not a table of aro_coco_order"):
        open_choices("aro_coco_order", tmp_path)


def orders_table(tmp_path, num_rows, text, image=b"x"):
    """A table whose rows repeat one text and one image, which it has once."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def repeated(value):
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array([value]))

    images = pa.StructArray.from_arrays([repeated(image)], ["bytes"])
    columns = {name: repeated(text) for name in ORDERS}
    (tmp_path / "aro_coco_order").mkdir(parents=True)
    file = tmp_path / "aro_coco_order/test.parquet"
    parquet.write_table(pa.table({"images": images, **columns}), file, compression="zstd", store_schema=False)
    assert file.stat().st_size < 2**20


@pytest.mark.parametrize(
    ("num_rows", "text", "said"),
    [
        (100, "x" * 1_000_000, "correct_caption has a text of 1,000,000 characters; a caption has at most 1,000"),
        (1, "x" * 60_000_000, "its captions unpack to 300,000,"),
        (5_000_000, "a", "it has 5,000,000 rows; a set has at most 100,000"),
        (3, 5, "correct_caption is int64, not a text"),
        (3, " ", "correct_caption is ' ', not a text"),
    ],
)
def test_a_table_of_too_many_rows_or_too_long_captions_is_refused_at_once(tmp_path, num_rows, text, said):
    orders_table(tmp_path, num_rows, text)
    with pytest.raises(MissingData, match=r"test\.parquet is not a table of aro_coco_order") as raised:
        open_choices("aro_coco_order", tmp_path)
    assert said in str(raised.value)


def test_rows_that_repeat_an_image_take_no_memory_for_each(tmp_path):
    image = picture(7) + bytes(1_000_000)
    orders_table(tmp_path, 10_000, "a cat", image)  # 10 GB of images
    source = open_choices("aro_coco_order", tmp_path).data.source
    assert [source[index]["image"] == image for index in (0, 9_999)] == [True, True]


def test_a_long_cell_of_a_table_is_named(tmp_path):
    csv.field_size_limit(131072)  # Python's; `convert` takes larger ones
    put(tmp_path / "mmvp_vlm/Questions.csv", f"Question ID,Type,Statement\n1,Count,{'x' * 200_000}\n".encode())
    with pytest.raises(MissingData, match=r"Questions.csv is not MMVP-VLM's Questions.csv \(Error: field larger"):
        open_choices("mmvp_vlm", tmp_path)


def test_a_part_of_a_set_keeps_its_pairs(tmp_path):
    winoground(tmp_path)
    found = Sets(tmp_path, num_examples=1).choices("winoground")
    assert [each.image for each in found.choices] == [0, 1] and len(found.data.source) == 2
    assert found.data.fingerprint.endswith("/1")
    assert len(Sets(tmp_path, num_examples=9).choices("winoground").choices) == 4


@pytest.mark.parametrize("name", CHOICES)
def test_a_set_that_is_missing_says_how_to_get_it(tmp_path, name):
    with pytest.raises(MissingData, match=f"no data of '{name}'.*does not exist.*Do this") as raised:
        open_choices(name, tmp_path)
    assert "{" not in str(raised.value)


HOSTILE = {
    "winoground": (winoground, "winoground/examples.jsonl", [{"image_0": "a"}, {"caption_0": 3}, "[", "\xff", '{"a"']),
    "sugarcrepe": (sugarcrepe, "sugar-crepe/data/swap_obj.json", [[3], {"0": []}, "nan", [{"caption": None}], "5"]),
    "sugarcrepe_pp": (sugarcrepe_pp, "sugarcrepe_pp/swap_object.json", [[{"filename": NUMBER, "caption": " "}], "{"]),
    "mmvp_vlm": (
        mmvp_vlm,
        "MMVP_VLM/Questions.csv",
        ["a\n1\n2\n", "a,b,c\nx,y,z\nx,y,z\n", "a,b,c\n1,y,\n2,y,z\n", "a,b,c\n1,y,z\n"],
    ),
    "aro_relation": (aro, "aro/visual_genome_relation.json", [[{"image_path": 3}], {"a": 1}, "[" * 100_000]),
    "aro_attribution": (aro, "aro/visual_genome_attribution.json", [[{"attributes": 3}], "[[]]", "{}}"]),
    "fg_ovd": (
        fg_ovd,
        "fg_ovd/benchmarks/1_attributes.json",
        [{}, [], {"images": 3}, {"images": [], "categories": [[]]}],
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_not_as_published_is_named_in_one_message(tmp_path, name):
    write, file, contents = HOSTILE[name]
    for content in contents:
        write(tmp_path)
        put(tmp_path / file, content)
        with pytest.raises(MissingData, match=pathlib.Path(file).name) as raised:
            open_choices(name, tmp_path)
        assert "download" in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize("name", HOSTILE)
def test_sets_without_their_images_or_choices_are_named(tmp_path, name):
    HOSTILE[name][0](tmp_path)
    for image in [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.jpg")]:
        image.unlink()
    with pytest.raises(MissingData, match=f"the images of {name} are missing: looked for"):
        open_choices(name, tmp_path)
    if name.startswith("aro_relation"):
        aro(tmp_path, relations=("next to",))
        with pytest.raises(MissingData, match="have no choice that is evaluated"):
            open_choices(name, tmp_path)


def test_a_first_image_that_is_missing_does_not_refuse_the_set(tmp_path):
    winoground(tmp_path)
    (tmp_path / "winoground/images/ex_0_img_0.png").unlink()
    assert len(open_choices("winoground", tmp_path).data.source) == 4


def test_a_single_image_that_is_missing_is_a_bad_record(tmp_path):
    winoground(tmp_path)
    found = open_choices("winoground", tmp_path)
    (tmp_path / "winoground/images/ex_1_img_1.png").unlink()
    with pytest.raises(BadRecord, match=r"ex_1_img_1.png: No such file"):
        found.data.source[3]
    aro(tmp_path)
    put(tmp_path / "aro/images/5.jpg", picture(1, (2, 3)))
    with pytest.raises(BadRecord, match="outside of the image of 3 x 2 pixels"):
        read(open_choices("aro_relation", tmp_path).data.source, 0)


def test_files_of_a_set_belong_together(tmp_path):
    sugarcrepe(tmp_path)
    (tmp_path / "sugar-crepe/data/add_att.json").unlink()
    with pytest.raises(MissingData, match=r"has no add_att.json, which belong to the set"):
        open_choices("sugarcrepe", tmp_path)


# long captions


def urban1k(root: pathlib.Path) -> None:
    for n in (2, 10):
        put(root / f"Urban1k/caption/{n}.txt", f"street {n}. a car.\nmore")
        put(root / f"Urban1k/image/{n}.jpg", picture(n, form="JPEG"))


def dci(root: pathlib.Path) -> None:
    base = root / "dci/densely_captioned_images"
    put(base / "splits.json", {"train": ["a.json"], "test": ["b.json"]})
    put(base / "annotations/a.json", {"image": "sa_2.jpg", "short_caption": "A pump.", "extra_caption": "It is red."})
    put(base / "annotations/b.json", {"image": "sa_10.jpg", "short_caption": "A tree.", "extra_caption": ""})
    for n in (2, 10):
        put(base / f"photos/sa_{n}.jpg", picture(n, form="JPEG"))


def docci(root: pathlib.Path) -> None:
    rows = [
        {"image_file": f"{split}_{n}.jpg", "description": f"{split} {n}", "split": split}
        for split, n in (("train", 1), ("test", 2), ("qual_test", 3), ("test", 10))
    ]
    put(root / "docci/docci_descriptions.jsonlines", lines(*rows))
    for n in (2, 10):
        put(root / f"docci/images/test_{n}.jpg", picture(n, form="JPEG"))


def iiw400(root: pathlib.Path) -> None:
    rows = [{"image/key": f"aar_test_{n}", "IIW": f"a flower {n}", "IIW-P5B": "a bee"} for n in (2, 10)]
    put(root / "iiw400/data.jsonl", lines(*rows))
    for n in (2, 10):
        put(root / f"iiw400/images_aar/aar_test_{n}.jpg", picture(n, form="JPEG"))


def sharegpt4v(root: pathlib.Path, tail: str = "]") -> None:
    said = lambda n: [{"from": "human", "value": "?"}, {"from": "gpt", "value": f"a view\nof {n}"}]
    rows = [{"id": str(n), "image": f"sam/images/sa_{n}.jpg", "conversations": said(n)} for n in (2, 10)]
    more = [{"id": "x", "image": "sam/images/none.jpg", "conversations": said(0)}] * 998
    text = json.dumps([*rows, *more])[:-1] + ', {"unread' + tail
    put(root / "sharegpt4v1k/share-captioner_coco_lcs_sam_1246k_1107.json", text)
    for n in (2, 10):
        put(root / f"sharegpt4v1k/sam/images/sa_{n}.jpg", picture(n, form="JPEG"))


LONG = {
    "urban1k": (urban1k, ["street 10. a car.", "street 2. a car."], "Urban1k/caption/2.txt"),
    "dci": (dci, ["A pump.\nIt is red.", "A tree."], "dci/densely_captioned_images/annotations/b.json"),
    "docci": (docci, ["test 2", "test 10"], "docci/docci_descriptions.jsonlines"),
    "iiw400": (iiw400, ["a flower 2", "a flower 10"], "iiw400/data.jsonl"),
    "sharegpt4v1k": (
        sharegpt4v,
        ["a view of 2", "a view of 10"],
        "sharegpt4v1k/share-captioner_coco_lcs_sam_1246k_1107.json",
    ),
}


def test_all_sets_of_long_captions_have_a_tree_here():
    assert set(LONG) == {known.name for known in LONG_CAPTIONS} <= set(KNOWN)


@pytest.mark.parametrize("name", LONG)
def test_long_captions_are_read_with_their_images(tmp_path, name):
    write, captions, _ = LONG[name]
    write(tmp_path)
    found = open_set(name, tmp_path)
    assert [found.source[i]["captions"] for i in range(2)] == [(caption,) for caption in captions]
    shown = [int(read(found.source, i)[1].mean().round()) for i in range(2)]
    assert shown == [int("".join(filter(str.isdigit, found.source[i]["key"]))) for i in range(2)]
    assert not found.classes and found.expected == KNOWN[name].num_test
    assert len(found.source) == (1000 if name == "sharegpt4v1k" else 2)


@pytest.mark.parametrize("name", LONG)
def test_a_file_of_long_captions_that_is_damaged_is_named(tmp_path, name):
    write, _, file = LONG[name]
    for content in ("[3]", '{"split": "test"}', "", "\x00", " \n", '{"image": 3, "split": "test"}'):
        write(tmp_path)
        put(tmp_path / file, content)
        if name == "urban1k" and content.strip():
            assert open_set(name, tmp_path).source[1]["captions"] == (content,)  # any text is a caption
            continue
        with pytest.raises(MissingData, match=pathlib.Path(file).name) as raised:
            open_set(name, tmp_path)
        assert "download it again" in str(raised.value)


@pytest.mark.parametrize("name", LONG)
def test_long_captions_without_images_or_files_say_what_to_do(tmp_path, name):
    with pytest.raises(MissingData, match=f"no data of '{name}'") as raised:
        open_set(name, tmp_path)
    assert "{folder}" not in str(raised.value) and "split file" not in str(raised.value)
    LONG[name][0](tmp_path)
    for image in tmp_path.rglob("*.jpg"):
        image.unlink()
    with pytest.raises(MissingData, match=f"the images of {name} in .* are missing: looked for"):
        open_set(name, tmp_path)


def test_annotations_outside_of_their_folder_are_refused(tmp_path):
    dci(tmp_path)
    put(tmp_path / "dci/densely_captioned_images/splits.json", {"train": ["../../../secret.json"]})
    with pytest.raises(MissingData, match=r"splits.json.*unsafe path"):
        open_set("dci", tmp_path)
