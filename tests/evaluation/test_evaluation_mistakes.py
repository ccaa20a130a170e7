"""What a mistake in tasks, evaluators or data of an evaluation is answered with: the thing and the way out."""

import numpy as np
import pytest
from evaluation_data import config_with

from detailclip_jax import evaluation
from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.sources import MissingData
from detailclip_jax.evaluation import classification, image_batches, knn, metrics
from detailclip_jax.evaluation.embedder import Embedder
from detailclip_jax.evaluation.evaluation_sets import Sets
from detailclip_jax.evaluation.protocols import match, zero_shot_task
from detailclip_jax.evaluation.retrieval import retrieval_metrics
from detailclip_jax.evaluation.subject import Subject
from detailclip_jax.evaluation.tasks import parse, plan
from detailclip_jax.inference.class_embeddings import class_embeddings
from detailclip_jax.runtime.errors import Unmeasurable

IMAGES, LABELS = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32), np.arange(60) % 3


def classified(metric, num_classes=3, labels=LABELS):
    return list(classification.zero_shot_metrics(IMAGES, IMAGES[:num_classes], labels, metric))


def pairs(*captions):
    return image_batches.pairs_at([{"image": b"", "captions": texts} for texts in captions], range(len(captions)))


def ranks_of_one_caption():
    blocks = [(slice(0, 2), np.eye(2, dtype=np.float32))]
    return metrics.block_ranks(blocks, blocks, 2, np.zeros(2, int), np.arange(2))


def embedded(source, transform=Transform(8, 8)):  # noqa: B008  # immutable
    encode = lambda params, images: images[:, 0, 0].astype(np.float32)
    encoder = type("Encoder", (), {"image": staticmethod(encode)})
    return Embedder(encoder, len, batch_size=2).images({}, LabelledSet("greys", source, (), "", None), transform)


def compared(name):
    return evaluation.run_tasks(Subject("mine", None, {}, {}, Transform(8, 8), len), [], Sets(), compare=name)


MISTAKES = [  # the mistake; the call; the error; words of its message
    # tasks
    ("a set of choices", lambda: parse("choice:winogrand", Sets()), ValueError, "did you mean 'winoground'"),
    ("a set without choices", lambda: parse("choice:coco", Sets()), ValueError, "unknown set of choices 'coco'"),
    ("a set as a task", lambda: parse("winoground", Sets()), ValueError, "write for example choice:winoground"),
    ("no set", lambda: parse("choice", Sets()), ValueError, "choice names no set; write for example choice:sugarcrepe"),
    ("scenes of several objects", lambda: parse("zero_shot:stickers_long", Sets()), ValueError, "zero_shot:stickers"),
    ("a set without classes", lambda: parse("zero_shot:docci", Sets()), ValueError, "captions and no classes"),
    ("a set of a group", lambda: parse("detail:dci", Sets()), ValueError, "detail stands for several tasks"),
    ("a set of dense", lambda: parse("dense:voc22", Sets()), ValueError, "did you mean 'voc2"),
    ("a read-out", lambda: parse("dense:voc20:naclp", Sets()), ValueError, "did you mean 'naclip'"),
    ("a comparison", lambda: compared("publishd"), ValueError, "unknown compare 'publishd'; did you mean 'published'"),
    # evaluators of a run
    (
        "a set of an evaluator",
        lambda: plan(config_with({"zero_shot:imagenett": {}})),
        ValueError,
        "unknown set 'imagenett'; did you mean 'imagenet'?",
    ),
    (
        "a task of an evaluator",
        lambda: plan(config_with({"zeroshot:pets": {}})),
        ValueError,
        "unknown task 'zeroshot'; did you mean 'zero_shot'?",
    ),
    (
        "an option of a task",
        lambda: plan(config_with({"knn:pets": {"num_scenes": 3}})),
        ValueError,
        "unknown option of evaluator knn:pets: 'num_scenes'",
    ),
    (
        "an option of an evaluator",
        lambda: plan(config_with({"zero_shot": {"scenes": 3}})),
        ValueError,
        "option of evaluator zero_shot: 'scenes'; did you mean 'num_scenes'?",
    ),
    (
        "the protocol of an evaluator",
        lambda: plan(config_with({"retrieval:coco": {"protocol": "clipbench"}})),
        ValueError,
        "unknown evaluators.retrieval:coco.protocol 'clipbench'; did you mean 'clip_benchmark'?",
    ),
    *(
        (
            f"a number {number!r} of an evaluator",
            lambda number=number: plan(config_with({"zero_shot": {"num_scenes": number}})),
            ValueError,
            f"evaluators.zero_shot.num_scenes is {number!r}: expected a whole number of at least 1, or None for all",
        )
        for number in ("many", 0, True, 2.5)
    ),
    ("an evaluator", lambda: plan(config_with({"pets": {}})), ValueError, "unknown evaluator 'pets'"),
    (
        "the spelling of an evaluator",
        lambda: plan(config_with({"zeroshot": {}})),
        ValueError,
        "unknown evaluator 'zeroshot'; did you mean 'zero_shot'? Known: ",
        "kept_objects",
    ),
    (
        "data of an evaluator",
        lambda: evaluation.check(None, config_with({"zero_shot:pets": {"data_dir": "nowhere"}})),
        MissingData,
        "no data of 'pets'",
    ),
    # class names
    (
        "an unknown class",
        lambda: match(["Abyssinian", "egyptian_mouse"], [["Abyssinian"], ["Egyptian Mau"]]),
        ValueError,
        "1 classes of the data have an unknown name: 'egyptian_mouse' (nearest: 'Egyptian Mau')",
        "1 known classes are not in the data: 'Egyptian Mau'",
        "folder:PATH",
    ),
    (
        "a missing class",
        lambda: match(["cat"], [["cat"], ["dog"]]),
        ValueError,
        "1 known classes are not in the data: 'dog'",
    ),
    (
        "two classes of one meaning",
        lambda: match(["cat", "n1"], [["cat", "n1"]]),
        ValueError,
        "same known class: 'cat', 'n1'",
    ),
    (
        "a class twice",
        lambda: match(["cat", "Cat"], [["cat"]]),
        ValueError,
        "same known class: 'cat', 'Cat'",
    ),
    (
        "many unknown classes",
        lambda: match([f"x{i}" for i in range(25)], [["cat"]]),
        ValueError,
        "25 classes of the data have an unknown name: ",
        "'x9' and 15 more",
    ),
    (
        "classes of another set",
        lambda: zero_shot_task("slip", "pets", ["cat"]),
        ValueError,
        "pets, protocol slip: 1 classes of the data have an unknown name: 'cat'",
    ),
    (
        "a protocol",
        lambda: zero_shot_task("clip", "pets", ["cat"]),
        ValueError,
        "unknown protocol 'clip'; known: slip, clip_benchmark",
    ),
    (
        "a template without a class",
        lambda: zero_shot_task("slip", "mine", ["cat", "dog"], ["a photo of a {class}."]),
        ValueError,
        "mine: template 'a photo of a {class}.' has no place for the name of a class",
        "{c}",
    ),
    # arrays
    (
        "a class without a prompt",
        lambda: class_embeddings(np.ones((2, 3), np.float32), np.array([0, 2]), 4),
        Unmeasurable,
        "classes [1, 3] of 4",
    ),
    ("a caption without an image", ranks_of_one_caption, Unmeasurable, "query 1 has no correct entry"),
    (
        "captions of other images",
        lambda: list(retrieval_metrics(np.eye(2), np.eye(2)[:1], [("a frog",)], (1,))),
        ValueError,
        "2 images, but captions for 1",
    ),
    ("ROC AUC of three classes", lambda: classified("roc_auc"), Unmeasurable, "two classes, not 3"),
    (
        "ROC AUC of one class",
        lambda: classified("roc_auc", 2, np.ones_like(LABELS)),
        Unmeasurable,
        "examples of both classes; these 60 are all of one",
    ),
    ("a metric", lambda: classified("f1"), ValueError, "unknown metric 'f1'; known: accuracy, mean_per_class"),
    (
        "fewer examples than neighbours",
        lambda: list(knn.knn_metrics(IMAGES[:4], LABELS[:4], IMAGES[:5], LABELS[:5], 5)),
        Unmeasurable,
        "at least 10 training examples; there are 4",
    ),
    # examples
    ("no example", lambda: embedded([]), Unmeasurable, "no example"),
    ("no caption", lambda: pairs(("one",), ()), Unmeasurable, "example 1 has no caption"),
    ("blank captions", lambda: pairs(("one", ""), ("two", " "), ("", "\t")), Unmeasurable, "example 2 has no caption"),
]


@pytest.mark.parametrize(
    ("call", "error", "words"), [(c, e, w) for _, c, e, *w in MISTAKES], ids=[mistake for mistake, *_ in MISTAKES]
)
def test_a_mistake_is_answered_with_the_thing_and_the_way_out(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
