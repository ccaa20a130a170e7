"""The known test sets: size of the test split, names in other libraries, and ways to get them.

Sizes are those of CLIP's table of data sets (arXiv 2103.00020, appendix A), which SLIP and DetailCLIP evaluate on.  If
a publisher offers other splits, `other_sizes` lists their sizes with a description.
"""

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

TENSORFLOW = "  (TensorFlow may be needed to prepare the set, not to use it)"
VALIDATION = {"train": "train", "test": "validation"}


class Known(NamedTuple):
    """A known test set.

    tfds: builder, with a config if it has several.  wds: repository clip-benchmark/wds_...
    published: folder as its publisher names it, if that is the layout that is read.  get: how to get that.
    """

    name: str
    num_test: int
    tfds: str = ""
    wds: str = ""
    tfds_splits: Mapping[str, str] = {}
    other_sizes: Mapping[int, str] = {}
    captioned: bool = False
    published: str = ""
    get: str = ""

    @property
    def sizes(self) -> dict[int, str]:
        """All known sizes of the test split, each with a description; the description of the usual size is empty."""
        return {**self.other_sizes, self.num_test: ""}

    def folders(self) -> tuple[str, ...]:
        """Returns the folders, relative to the data folder, in which the set is searched, in order."""
        return tuple(
            dict.fromkeys(f for f in (self.tfds, self.name, self.published, self.wds and f"wds_{self.wds}") if f)
        )


PAPER = (
    Known("imagenet", 50_000, "imagenet2012", "imagenet1k", VALIDATION),
    Known(
        "sun397",
        19_850,
        "sun397/standard-part1-120k",
        "sun397",
        other_sizes={
            21_750: "the random split of TFDS's config tfds",
            108_754: "all images, as clip-benchmark has it",
        },
    ),
    Known("aircraft", 3_333, wds="fgvc_aircraft"),
    Known("dtd", 1_880, "dtd", "vtab-dtd"),
    Known("pets", 3_669, "oxford_iiit_pet", "vtab-pets"),
    Known("flowers", 6_149, "oxford_flowers102", "vtab-flowers"),
    Known("gtsrb", 12_630, wds="gtsrb"),
    Known("mnist", 10_000, "mnist", "mnist"),
    Known("stl10", 8_000, "stl10", "stl10"),
    Known("kitti_distance", 711, "kitti", "vtab-kitti_closest_vehicle_distance"),
    Known("country211", 21_100, wds="country211"),
    Known("patch_camelyon", 32_768, "patch_camelyon", "vtab-pcam"),
    Known(
        "clevr_counts", 500, "clevr", "vtab-clevr_count_all", VALIDATION, {15_000: "VTAB's, CLEVR's validation split"}
    ),
    Known("rendered_sst2", 1_821, wds="renderedsst2"),
)

OTHERS = (
    Known("food101", 25_250, "food101", "food101", VALIDATION),
    Known("cifar10", 10_000, "cifar10", "cifar10"),
    Known("cifar100", 10_000, "cifar100", "vtab-cifar100"),
    Known("birdsnap", 2_149),
    Known("cub200", 5_794, "caltech_birds2011"),
    Known("hateful_memes", 500),
    Known("kinetics700_frames", 31_669),
    Known("ucf101_frames", 1_794),
    Known(
        "resisc45",
        25_200,
        "resisc45",
        "vtab-resisc45",
        {"train": "train[:25200]", "test": "train[25200:]"},
        {6_300: "VTAB's test split"},
    ),
    Known(
        "eurosat",
        5_000,
        "eurosat/rgb",
        "vtab-eurosat",
        {"train": "train[:21600]", "test": "train[21600:]"},
        {5_400: "VTAB's test split"},
    ),
    Known("fer2013", 3_574, wds="fer2013", other_sizes={7_178: "the public and the private test part"}),
    Known("caltech101", 6_085, "caltech101", "vtab-caltech101", other_sizes={6_084: "VTAB's", 6_087: "TFDS's"}),
    Known("cars", 8_041, "cars196", "cars"),
    Known("voc2007", 14_976, wds="voc2007"),  # one crop per object, as clip-benchmark has it
)

CAPTIONED = (
    Known("coco", 5_000, "coco_captions", "mscoco_captions", captioned=True),
    Known("flickr30k", 1_000, wds="flickr30k", other_sizes={31_014: "all images"}, captioned=True),
)

LONG_CAPTIONS = (  # one long caption per image; `long_captions` has the layouts
    Known(
        "urban1k",
        1_000,
        captioned=True,
        published="Urban1k",
        get="hf download BeichenZhang/Urban1k --repo-type dataset --local-dir {folder}; unpack Urban1k.zip there",
    ),
    Known(
        "dci",
        7_805,
        captioned=True,
        published="DCI",
        get="https://github.com/facebookresearch/DCI: dci.tar.gz in {folder}/dci, and the images of SA-1B's "
        "sa_000138.tar in {folder}/dci/densely_captioned_images/photos",
    ),
    Known(
        "docci",
        5_000,
        captioned=True,
        published="DOCCI",
        get="https://google.github.io/docci: docci_descriptions.jsonlines and the images in {folder}/docci",
    ),
    Known(
        "iiw400",
        400,
        captioned=True,
        published="IIW-400",
        get="https://github.com/google/imageinwords: datasets/IIW-400/data.jsonl in {folder}/iiw400, and the images of "
        "DOCCI-AAR in {folder}/iiw400/images_aar",
    ),
    Known(
        "sharegpt4v1k",
        1_000,
        captioned=True,
        published="ShareGPT4V",
        get="hf download Lin-Chen/ShareGPT4V share-captioner_coco_lcs_sam_1246k_1107.json --repo-type dataset "
        "--local-dir {folder}/sharegpt4v1k; the images of SA-1B in {folder}/sharegpt4v1k/sam/images",
    ),
)

KNOWN = {known.name: known for known in (*PAPER, *OTHERS, *CAPTIONED, *LONG_CAPTIONS)}


def ways_to_get(known: Known, folder: str | os.PathLike) -> Iterator[str]:
    """Yields one line for each way to put the set into a folder in which it is searched."""
    if known.get:
        yield known.get.replace("{folder}", str(folder))
    elif known.captioned:
        yield f"the Karpathy split file {folder}/{known.name}/dataset_{known.name}.json, with its images"
    else:
        yield f"one folder per class: {folder}/{known.name}/test/CLASS/*.jpg"
    if known.wds:
        source = f"clip-benchmark/wds_{known.wds}"
        yield f"hf download {source} --repo-type dataset --local-dir {folder}/wds_{known.wds}"
    if known.tfds:
        builder = f'tfds.builder("{known.tfds}", data_dir="{folder}", file_format="array_record")'
        yield f"python -c 'import tensorflow_datasets as tfds; {builder}.download_and_prepare()'" + TENSORFLOW
