"""Prompts by protocol, and matching of classes by name."""

import io
import itertools
import json

import numpy as np
import pytest

from detailclip_jax.data.labelled import KNOWN, open_set
from detailclip_jax.data.labelled.known_sets import PAPER
from detailclip_jax.data.labelled.tfds_sets import KITTI_CLASSES
from detailclip_jax.evaluation import protocols
from detailclip_jax.evaluation.protocols import PACKAGE_NAMES, PROTOCOLS, match, package, plain, slip, zero_shot_task

# names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("American Bulldog", "american_bulldog"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("/a/apartment_building/outdoor", "apartment building outdoor"),
        ("00012", "12"),
        ("F-16A/B", "F-16A_B"),
        ("Côte d'Ivoire", "Cote d'Ivoire"),
        ("snoopy (cartoon beagle)", "Snoopy Cartoon Beagle"),
    ],
)
def test_spelling_does_not_count(one, other):
    assert plain(one) == plain(other)


@pytest.mark.parametrize(
    ("one", "other"), [("10", "100"), ("0", "00010"), ("737-200", "737-300"), ("3", "three"), ("F/A-18", "A-18")]
)
def test_what_differs_stays_apart(one, other):
    assert plain(one) != plain(other)


def test_a_name_of_zeros_is_zero():
    assert plain("00000") == plain("0") == "0"


@pytest.mark.parametrize("name", list(slip()))
def test_no_two_classes_of_a_set_have_a_name_in_common(name):
    known = protocols.known_names(name)
    owners: dict[str, set[int]] = {}
    for index, names in enumerate(known):
        for each in names:
            owners.setdefault(plain(each), set()).add(index)
    shared = {each for each, places in owners.items() if len(places) > 1}
    assert shared == ({"missile", "sunglasses"} if name == "imagenet" else set())


def test_match_is_the_inverse_of_any_order():
    known = [["Abyssinian"], ["american bulldog", "bulldog"], ["12"]]
    for order in itertools.permutations(range(3)):
        assert match([known[i][-1].upper() for i in order], known) == list(order)


def test_classes_of_one_name_are_told_apart_by_others():
    known = [["missile", "n04008634"], ["crane"], ["missile", "n03773504"]]
    assert match(["missile", "crane", "missile"], known) == [0, 1, 2]
    assert match(["n03773504", "n04008634", "crane"], known) == [2, 0, 1]
    assert match(["projectile", "missile"], [["missile", "projectile"], ["missile"]]) == [0, 1]


def test_a_name_that_is_spelt_exactly_comes_before_one_that_is_alike():
    assert match(["C#", "C++"], [["C++"], ["C#"]]) == [1, 0]


# slip


@pytest.mark.parametrize("known", PAPER, ids=lambda known: known.name)
def test_sets_of_the_paper_have_the_published_counts(known):
    num_classes, num_templates, metric = {
        "imagenet": (1000, 7, "accuracy"),
        "sun397": (397, 2, "accuracy"),
        "aircraft": (100, 2, "mean_per_class"),
        "dtd": (47, 8, "accuracy"),
        "pets": (37, 1, "mean_per_class"),
        "flowers": (102, 1, "mean_per_class"),
        "gtsrb": (43, 3, "accuracy"),
        "mnist": (10, 1, "accuracy"),
        "stl10": (10, 2, "accuracy"),
        "kitti_distance": (4, 1, "accuracy"),
        "country211": (211, 5, "accuracy"),
        "patch_camelyon": (2, 1, "accuracy"),
        "clevr_counts": (8, 1, "accuracy"),
        "rendered_sst2": (2, 1, "accuracy"),
    }[known.name]
    classes = slip()[known.name]["classes"]
    task = zero_shot_task("slip", known.name, classes)
    assert len(task.prompts) == num_classes and {len(texts) for texts in task.prompts} == {num_templates}
    assert task.metric == metric and task.name == known.name


def test_every_zero_shot_set_with_prompts_has_both_protocols():
    with_prompts = [known.name for known in KNOWN.values() if not known.captioned and known.name in slip()]
    for name, protocol in itertools.product(with_prompts, PROTOCOLS):
        names = [each if isinstance(each, str) else each[0] for each in slip()[name]["classes"]]
        prompts = zero_shot_task(protocol, name, names).prompts
        assert len(prompts) == len(names) and all("{" not in text for texts in prompts for text in texts)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["pets", "imagenet", "fer2013", "clevr_counts", "kitti_distance"])
def test_prompts_follow_the_order_of_the_data(protocol, name):
    names = [each if isinstance(each, str) else each[0] for each in slip()[name]["classes"]]
    order = np.random.default_rng(0).permutation(len(names))
    prompts = zero_shot_task(protocol, name, names).prompts
    assert zero_shot_task(protocol, name, [names[i] for i in order]).prompts == tuple(prompts[i] for i in order)


def test_prompts_are_all_templates_of_all_synonyms():
    task = zero_shot_task("slip", "fer2013", ["sad", "angry", "disgust", "fear", "happiness", "neutral", "surprise"])
    templates = slip()["fer2013"]["templates"]
    assert sorted(task.prompts[0]) == sorted(t.format(n) for t in templates for n in ("sad", "depressed"))
    assert len(task.prompts[6]) == 3 * len(templates) and len(task.prompts[1]) == len(templates)


@pytest.mark.parametrize(
    ("name", "class_on_disk", "prompt"),
    [
        ("imagenet", "n01440764", "itap of a tench."),
        ("imagenet", "n15075141", "itap of a toilet paper."),
        ("country211", "XK", "a photo i took in Kosovo."),
        ("country211", "DE", "a photo i took in Germany."),
        ("gtsrb", "00014", 'a zoomed in photo of a "stop" traffic sign.'),
        ("flowers", "1", "a photo of a pink primrose, a type of flower."),
        ("flowers", "102", "a photo of a blackberry lily, a type of flower."),
        ("flowers", "ball moss", "a photo of a air plant, a type of flower."),
        ("eurosat", "SeaLake", "a centered satellite photo of lake or sea."),
        ("caltech101", "Faces_easy", "a photo of a centered face."),
        ("patch_camelyon", "1", "this is a photo of lymph node containing metastatic tumor tissue"),
        ("clevr_counts", "count_10", "a photo of 10 objects."),
        ("clevr_counts", "three", "a photo of 3 objects."),
        ("mnist", "7", 'a photo of the number: "7".'),
        ("sun397", "/a/abbey", "a photo of a abbey."),
    ],
)
def test_what_publishers_call_a_class(name, class_on_disk, prompt):
    known = protocols.known_names(name)
    place = [plain(class_on_disk) in map(plain, names) for names in known].index(True)
    classes = [class_on_disk if i == place else names[0] for i, names in enumerate(known)]
    assert prompt in zero_shot_task("slip", name, classes).prompts[place]


def test_kitti_labels_derived_by_this_package_match():
    for protocol in PROTOCOLS:
        assert zero_shot_task(protocol, "kitti_distance", KITTI_CLASSES).prompts == tuple(
            (each,) for each in KITTI_CLASSES
        )


def test_aliases_belong_to_sets_and_are_as_many_as_the_classes():
    for name, aliases in protocols.read("aliases").items():
        assert len(aliases) == len(slip()[name]["classes"])
    wnids = [each[0] for each in protocols.read("aliases")["imagenet"]]
    assert wnids == sorted(set(wnids)) and all(len(each) == 9 and each[0] == "n" for each in wnids)
    codes = [each[0] for each in protocols.read("aliases")["country211"]]
    assert codes == sorted(set(codes)) and all(len(each) == 2 for each in codes)


# clip_benchmark


def test_the_package_says_other_things_about_some_sets():
    task = zero_shot_task("clip_benchmark", "clevr_counts", [str(i) for i in range(3, 11)])
    assert task.prompts[0] == ("a picture of three objects",)
    task = zero_shot_task("clip_benchmark", "patch_camelyon", ["0", "1"])
    assert task.prompts[0] == ("a histopathology slide showing lymph node", "histopathology image of lymph node")
    classes = [each[-1] for each in protocols.known_names("imagenet")]
    task = zero_shot_task("clip_benchmark", "imagenet", classes)
    assert task.prompts[0][0] == "a bad photo of a tench." and len(task.prompts[0]) == 80
    assert task.metric == "accuracy"


def test_the_package_goes_by_the_names_of_the_data_where_it_has_none():
    classes = [each.replace(" ", "_") for each in slip()["food101"]["classes"]]
    assert zero_shot_task("clip_benchmark", "food101", classes).prompts[0] == ("a photo of apple pie, a type of food.",)
    classes = [each.replace(" ", "_") for each in slip()["cifar100"]["classes"]]
    assert zero_shot_task("clip_benchmark", "cifar100", classes).prompts[1][0] == "a photo of a aquarium_fish."
    assert zero_shot_task("clip_benchmark", "aircraft", ["707-320"]).prompts[0][0] == (
        "a photo of a 707-320, a type of aircraft."
    )


def test_templates_beside_the_data_count_for_the_package_only():
    classes, templates = ["big_cat", "dog"], ["a {c}.", "the {c}."]
    assert zero_shot_task("clip_benchmark", "pets", classes, templates).prompts[0] == ("a big_cat.", "the big_cat.")
    names = slip()["pets"]["classes"]
    assert zero_shot_task("slip", "pets", names, templates) == zero_shot_task("slip", "pets", names)


def test_every_package_name_exists():
    assert set(PACKAGE_NAMES.values()) <= set(package("templates"))
    assert set(PACKAGE_NAMES) <= set(slip())


# sets of one's own


@pytest.mark.parametrize(("protocol", "num"), [("slip", 7), ("clip_benchmark", 80)])
def test_an_unknown_set_takes_imagenets_templates_and_its_own_names(protocol, num):
    task = zero_shot_task(protocol, "folder:/my/birds", ["blue_jay", "{odd}"])
    assert len(task.prompts[0]) == num and "a photo of the small blue jay." in task.prompts[0]
    assert "a photo of the small {odd}." in task.prompts[1] and task.metric == "accuracy"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_unknown_set_may_bring_templates(protocol):
    task = zero_shot_task(protocol, "mine", ["blue_jay"], ["my {c}!"])
    assert task.prompts == (("my blue_jay!",),) and task.origin == "the data's prompts"


@pytest.mark.parametrize(
    ("protocol", "name", "classes", "origin"),
    [
        ("slip", "mine", ["frog"], "ImageNet's prompts"),
        ("slip", "svhn", ["zero"], "ImageNet's prompts"),  # the package has prompts for it
        ("clip_benchmark", "svhn", package("classes")["svhn"], ""),
        ("clip_benchmark", "cub200", ["frog"], "ImageNet's prompts"),  # SLIP has prompts for it
        ("clip_benchmark", "stl10", ["frog"], ""),
    ],
)
def test_the_origin_of_the_prompts_is_known(protocol, name, classes, origin):
    assert zero_shot_task(protocol, name, classes).origin == origin


def test_sets_that_only_the_package_names():
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert (
        zero_shot_task("clip_benchmark", "svhn", digits).prompts[1][0] == "a photo of the number one written on a sign"
    )


def test_a_permuted_tree_on_disk_gives_its_prompts(tmp_path):
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    for name in ("ten", "three", "four", "five", "six", "seven", "eight", "nine"):  # on disk in alphabetical order
        (tmp_path / "clevr_counts" / "test" / name).mkdir(parents=True)
        (tmp_path / "clevr_counts" / "test" / name / "0.png").write_bytes(stream.getvalue())
    opened = open_set("clevr_counts", tmp_path)
    task = zero_shot_task("slip", "clevr_counts", opened.classes)
    assert [texts[0] for texts in task.prompts] == [f"a photo of {n} objects." for n in (8, 5, 4, 9, 7, 6, 10, 3)]


def test_the_data_files_are_the_packages():
    module = pytest.importorskip("clip_benchmark")
    import pathlib

    folder = pathlib.Path(module.__file__).parent / "datasets"
    for part, file in (("classes", "en_classnames"), ("templates", "en_zeroshot_classification_templates")):
        assert package(part) == json.loads((folder / f"{file}.json").read_text())
