"""An imported model on the same data: what clip-benchmark counts with its own transform, to the last sample."""

import gc
import io
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
folders = pytest.importorskip("torchvision.datasets")
webdataset = pytest.importorskip("webdataset")
package_models = pytest.importorskip("clip_benchmark.models.open_clip")
classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
package_retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
builder = pytest.importorskip("clip_benchmark.datasets.builder")

import detailclip_jax  # noqa: E402
from detailclip_jax import import_torch  # noqa: E402
from detailclip_jax.data.tokenizer import Tokenizer  # noqa: E402
from detailclip_jax.evaluation import Sets  # noqa: E402
from detailclip_jax.evaluation.classification import matrix_metrics  # noqa: E402
from detailclip_jax.evaluation.embedder import Embedder  # noqa: E402
from detailclip_jax.evaluation.evaluator import Setting  # noqa: E402
from detailclip_jax.evaluation.protocols import slip  # noqa: E402
from detailclip_jax.evaluation.tasks import KINDS  # noqa: E402

SIZE, BATCH = 32, 16
# bicubic resizing is open_clip's own default, and is not stated here
STATED = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
COUNTS = {"eight": "8", "five": "5", "four": "4", "nine": "9", "seven": "7", "six": "6", "ten": "10", "three": "3"}
FACES = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
SHAPES = [(40, 50), (33, 90), (70, 32), (32, 32), (20, 25), (1, 60), (200, 31)]


class Both(NamedTuple):
    """One set of weights: as the package loads it, with its own transform, and as we import it."""

    model: Any
    transform: Any
    tokenizer: Any
    ours: Any


@pytest.fixture(scope="module", params=["open_clip", pytest.param("openai", marks=pytest.mark.slow)])
def both(request, tmp_path_factory):
    """A folder that open_clip reads, imported from there, or from a state dict in OpenAI's archives' layout."""
    folder, run = (tmp_path_factory.mktemp(request.param) / name for name in ("weights", "run"))
    folder.mkdir()
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": SIZE}
    text = {"layers": 1, "width": 64, "heads": 2, "context_length": 77, "vocab_size": 49408}
    network = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    weights = open_clip.CLIP(**network).state_dict()
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": network, "preprocess_cfg": STATED}))
    model, transform, tokenizer = package_models.load_open_clip(f"local-dir:{folder}", pretrained=None)
    source = [str(folder)]
    if request.param == "openai":
        torch.save({**weights, "input_resolution": torch.tensor(SIZE)}, run.with_suffix(".pt"))
        source = ["--from=openai", str(run.with_suffix(".pt")), "--num-heads=2", "--text-heads=2"]
    assert import_torch.main([*source, f"--out={run}"]) == 0
    return Both(model.eval(), transform, tokenizer, detailclip_jax.load(run))


LEAVES_FILES_OPEN = pytest.mark.filterwarnings(  # the package's reader of tars
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:WebDataset.shardshuffle:UserWarning",
)


@pytest.fixture(autouse=True)
def accuracy_under_any_numpy(monkeypatch):
    """The package's own calls float() on an array of one entry, which numpy refuses since 2.4."""

    def accuracy(output, target, topk=(1,)):
        best = output.topk(max(topk), 1).indices
        return [(best[:, :k] == target[:, None]).any(1).double().mean().item() for k in topk]

    monkeypatch.setattr(classification, "accuracy", accuracy)


def images(num, seed=0):
    """(extension, bytes) of images of odd shapes, colours and formats."""
    rng = np.random.default_rng(seed)
    for i in range(num):
        height, width = SHAPES[i % len(SHAPES)]
        noise = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) // 2 + rng.integers(0, 128, 3, dtype=np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        image = image.convert("L") if i % 5 == 4 else image
        form = ("JPEG", "PNG", "WEBP")[i % 3]
        stream = io.BytesIO()
        image.save(stream, form)
        yield form.lower().replace("jpeg", "jpg"), stream.getvalue()


def class_tree(root, names, num=63):
    labels = np.random.default_rng(1).integers(0, len(names), num)
    for i, (label, (form, data)) in enumerate(zip(labels, images(num))):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        (root / names[label] / f"{i:03d}.{form}").write_bytes(data)


def embedder_of(both):
    return Embedder(both.ours.encode, Tokenizer(77), batch_size=BATCH)


def prepared(both, root, kind, name, protocol="clip_benchmark"):
    return KINDS[kind].build(Setting(embedder_of(both), Sets(root, SIZE), both.ours.transform, protocol), name)


def assert_equal(both, task, loader, names, templates):
    """Accuracies, and the scores of every sample."""
    model, tokenizer, embedder = both.model, both.tokenizer, embedder_of(both)
    theirs = classification.evaluate(model, loader, tokenizer, names, templates, "cpu", amp=False)
    found = dict(task.run(both.ours.params))
    assert found["top1"] == pytest.approx(theirs["acc1"], abs=1e-9)
    assert 0 < theirs["acc1"] < 1 and found["top1"].n == len(task.data.source)
    classifier = classification.zero_shot_classifier(model, tokenizer, names, templates, "cpu", amp=False)
    logits, labels = classification.run_classification(model, classifier, loader, "cpu", amp=False)
    images = embedder.images(both.ours.params, task.data, both.ours.transform)
    scores = 100 * images.features @ classifier.numpy()
    np.testing.assert_array_equal(images.labels, labels)
    np.testing.assert_allclose(scores, logits, atol=5e-4)
    again = dict(matrix_metrics(scores, images.labels, "mean_per_class", (5,)))
    assert again["top5"] == pytest.approx(theirs["acc5"], abs=1e-9)
    assert again["mean_per_class"] == pytest.approx(theirs["mean_per_class_recall"], abs=1e-9)


@pytest.mark.parametrize(
    ("protocol", "templates", "word"),
    [
        ("clip_benchmark", ["a picture of {c} objects"], lambda name: name),
        ("slip", ["a photo of {c} objects."], COUNTS.get),
    ],
)
def test_class_folders_in_another_order_than_the_protocols(tmp_path, both, protocol, templates, word):
    class_tree(tmp_path / "clevr_counts" / "test", list(COUNTS))
    data = folders.ImageFolder(str(tmp_path / "clevr_counts" / "test"), both.transform)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH)
    task = prepared(both, tmp_path, "zero_shot", "clevr_counts", protocol)
    assert_equal(both, task, loader, [word(name) for name in data.classes], templates)


@pytest.mark.check
@pytest.mark.parametrize("protocol", ["clip_benchmark", "slip"])
def test_several_templates_and_synonyms(tmp_path, both, protocol):
    class_tree(tmp_path / "fer2013" / "test", FACES)
    data = folders.ImageFolder(str(tmp_path / "fer2013" / "test"), both.transform)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH)
    synonyms, patterns = slip()["fer2013"]["classes"], slip()["fer2013"]["templates"]
    names = [each[0] for each in synonyms]
    if protocol == "slip":  # the package takes prompts by class too
        templates = {each[0]: [pattern.format(word) for pattern in patterns for word in each] for each in synonyms}
    else:
        templates = [pattern.replace("{}", "{c}") for pattern in patterns]
    assert_equal(both, prepared(both, tmp_path, "zero_shot", "fer2013", protocol), loader, names, templates)


def write_tars(root, samples, maxcount=20):
    (root / "test").mkdir(parents=True)
    with webdataset.ShardWriter(str(root / "test" / "%d.tar"), maxcount=maxcount, verbose=0) as sink:
        for i, sample in enumerate(samples):
            sink.write({"__key__": f"s{i:07d}", **sample})
    (root / "test" / "nshards.txt").write_text(f"{len(list((root / 'test').glob('*.tar')))}\n")


def package_loader(root, transform):
    """The package's own reader of tars."""
    data = builder.build_dataset("wds/mine", root=str(root), transform=transform, split="test")
    return data, torch.utils.data.DataLoader(data.batched(BATCH), batch_size=None)


@pytest.mark.check
@LEAVES_FILES_OPEN
@pytest.mark.parametrize("name", ["wds_vtab-pets", pytest.param("wds_mine", marks=pytest.mark.slow)])
def test_tars_by_the_package_s_writer_and_reader(tmp_path, both, name):
    labels = np.random.default_rng(2).integers(0, 6, 50)
    samples = [{form: data, "cls": int(label)} for label, (form, data) in zip(labels, images(50, seed=3))]
    write_tars(tmp_path / name, samples)
    (tmp_path / name / "classnames.txt").write_text("Beagle\nblue_jay\nPug\nSphynx\n{odd}\nÖtzi\n", encoding="utf-8")
    (tmp_path / name / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nmy {c}!\n")
    task = prepared(both, tmp_path, "zero_shot", name.removeprefix("wds_").replace("vtab-", ""))
    data, loader = package_loader(tmp_path / name, both.transform)
    assert_equal(both, task, loader, data.classes, data.templates)
    gc.collect()


@LEAVES_FILES_OPEN
def test_retrieval(tmp_path, both):
    colours = ["red", "green", "blue", "grey", "pink"]
    texts = [[f"{colour} thing number {i} of {i * i}" for colour in colours] for i in range(43)]
    rows = zip(texts, images(43, seed=5))
    write_tars(tmp_path / "wds_flickr30k", [{form: data, "txt": "\n".join(own)} for own, (form, data) in rows])
    (tmp_path / "wds_flickr30k" / "dataset_type.txt").write_text("retrieval\n")
    data = builder.build_dataset(
        "wds/flickr30k",
        root=str(tmp_path / "wds_flickr30k"),
        transform=both.transform,
        split="test",
        task="zeroshot_retrieval",
    )
    loader = torch.utils.data.DataLoader(data.batched(BATCH), batch_size=None)
    theirs = package_retrieval.evaluate(both.model, loader, both.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    found = dict(prepared(both, tmp_path, "retrieval", "flickr30k").run(both.ours.params))
    for k in (1, 5, 10):
        assert found[f"image_to_text_r{k}"] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert found[f"text_to_image_r{k}"] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
    assert 0 < found["text_to_image_r10"] < 1
    gc.collect()
