"""The same open_clip model on the same data: what the package clip-benchmark counts, to the last sample."""

import gc
import io

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
transforms = pytest.importorskip("torchvision.transforms")
folders = pytest.importorskip("torchvision.datasets")
webdataset = pytest.importorskip("webdataset")
classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
package_retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
builder = pytest.importorskip("clip_benchmark.datasets.builder")

from detailclip_jax.config import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from detailclip_jax.data.labelled import open_set  # noqa: E402
from detailclip_jax.data.pipeline import evaluation_batches  # noqa: E402
from detailclip_jax.data.tokenizer import Tokenizer  # noqa: E402
from detailclip_jax.evaluate.embedding import gather  # noqa: E402
from detailclip_jax.evaluate.metrics import mean_per_class, top_k_hits  # noqa: E402
from detailclip_jax.evaluate.protocols import slip, zero_shot_task  # noqa: E402
from detailclip_jax.evaluate.retrieval import Retrieval  # noqa: E402
from detailclip_jax.evaluate.zero_shot import ZeroShot  # noqa: E402

SIZE, BATCH = 32, 16
COUNTS = {"eight": "8", "five": "5", "four": "4", "nine": "9", "seven": "7", "six": "6", "ten": "10", "three": "3"}
FACES = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
SHAPES = [(40, 50), (33, 90), (70, 32), (32, 32), (20, 25), (1, 60), (200, 31)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": SIZE}
    text = {"layers": 1, "width": 64, "heads": 2, "context_length": 77, "vocab_size": 49408}
    return open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.SimpleTokenizer(context_length=77)


TRANSFORM = transforms.Compose(
    [
        transforms.Resize(SIZE),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)


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


class Encode:
    """An open_clip model with the functions that an evaluator calls; embeddings are normalised."""

    def __init__(self, model):
        self.model = model
        self.normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)

    @torch.no_grad()
    def image(self, params, images):
        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
        return self.model.encode_image(self.normalise(pixels), normalize=True).numpy()

    @torch.no_grad()
    def text(self, params, tokens):
        return self.model.encode_text(torch.from_numpy(np.array(tokens)).long(), normalize=True).numpy()


def pictures(num, seed=0):
    """(extension, bytes) of pictures of odd shapes, colours and formats."""
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
    for i, (label, (form, data)) in enumerate(zip(labels, pictures(num))):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        (root / names[label] / f"{i:03d}.{form}").write_bytes(data)


def batches_of(source):
    return list(evaluation_batches(source, SIZE, Tokenizer(77), BATCH))


def ours(model, opened, task):
    evaluator = ZeroShot(Encode(model), batches=batches_of(opened.source), prompts=task.prompts, tokenize=Tokenizer(77))
    return dict(evaluator.run({}))


def assert_equal(model, opened, task, loader, tokenizer, names, templates):
    """Accuracies, and the scores of every sample."""
    theirs = classification.evaluate(model, loader, tokenizer, names, templates, "cpu", amp=False)
    found = ours(model, opened, task)
    assert (found["top1"], found["top5"]) == pytest.approx((theirs["acc1"], theirs["acc5"]), abs=1e-9)
    assert 0 < theirs["acc1"] < 1 and found["top1"].n == len(opened.source)
    classifier = classification.zero_shot_classifier(model, tokenizer, names, templates, "cpu", amp=False)
    logits, labels = classification.run_classification(model, classifier, loader, "cpu", amp=False)
    encode = Encode(model)
    images, own_labels = gather(
        lambda batch: (encode.image({}, batch["image"]), batch["label"]), batches_of(opened.source)
    )
    scores = 100 * images @ classifier.numpy()
    np.testing.assert_array_equal(own_labels, labels)
    np.testing.assert_allclose(scores, logits, atol=2e-4)
    hits = top_k_hits(scores, own_labels, 1)
    assert mean_per_class(hits, own_labels) == pytest.approx(theirs["mean_per_class_recall"], abs=1e-9)


@pytest.mark.parametrize(
    ("protocol", "templates", "word"),
    [
        ("clip_benchmark", ["a picture of {c} objects"], lambda name: name),
        ("slip", ["a photo of {c} objects."], COUNTS.get),
    ],
)
def test_class_folders_in_another_order_than_the_protocols(tmp_path, model, tokenizer, protocol, templates, word):
    class_tree(tmp_path / "clevr_counts" / "test", list(COUNTS))
    opened = open_set("clevr_counts", tmp_path)
    data = folders.ImageFolder(str(tmp_path / "clevr_counts" / "test"), TRANSFORM)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH)
    task = zero_shot_task(protocol, "clevr_counts", opened.classes)
    assert_equal(model, opened, task, loader, tokenizer, [word(name) for name in data.classes], templates)


@pytest.mark.parametrize("protocol", ["clip_benchmark", "slip"])
def test_several_templates_and_synonyms(tmp_path, model, tokenizer, protocol):
    class_tree(tmp_path / "fer2013" / "test", FACES)
    opened = open_set("fer2013", tmp_path)
    data = folders.ImageFolder(str(tmp_path / "fer2013" / "test"), TRANSFORM)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH)
    synonyms, patterns = slip()["fer2013"]["classes"], slip()["fer2013"]["templates"]
    names = [each[0] for each in synonyms]
    if protocol == "slip":  # the package takes prompts by class too
        templates = {each[0]: [pattern.format(word) for pattern in patterns for word in each] for each in synonyms}
    else:
        templates = [pattern.replace("{}", "{c}") for pattern in patterns]
    task = zero_shot_task(protocol, "fer2013", opened.classes)
    assert_equal(model, opened, task, loader, tokenizer, names, templates)


def write_tars(root, samples, maxcount=20):
    (root / "test").mkdir(parents=True)
    with webdataset.ShardWriter(str(root / "test" / "%d.tar"), maxcount=maxcount, verbose=0) as sink:
        for i, sample in enumerate(samples):
            sink.write({"__key__": f"s{i:07d}", **sample})
    (root / "test" / "nshards.txt").write_text(f"{len(list((root / 'test').glob('*.tar')))}\n")


def package_loader(root):
    """The package's own reader of tars."""
    data = builder.build_dataset("wds/mine", root=str(root), transform=TRANSFORM, split="test")
    return data, torch.utils.data.DataLoader(data.batched(BATCH), batch_size=None)


@LEAVES_FILES_OPEN
@pytest.mark.parametrize("name", ["wds_vtab-pets", "wds_mine"])
def test_tars_by_the_package_s_writer_and_reader(tmp_path, model, tokenizer, name):
    labels = np.random.default_rng(2).integers(0, 6, 50)
    samples = [{form: data, "cls": int(label)} for label, (form, data) in zip(labels, pictures(50, seed=3))]
    write_tars(tmp_path / name, samples)
    (tmp_path / name / "classnames.txt").write_text("Beagle\nblue_jay\nPug\nSphynx\n{odd}\nÖtzi\n", encoding="utf-8")
    (tmp_path / name / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nmy {c}!\n")
    opened = open_set(name.removeprefix("wds_").replace("vtab-", ""), tmp_path)
    data, loader = package_loader(tmp_path / name)
    task = zero_shot_task("clip_benchmark", opened.name, opened.classes, opened.templates)
    assert_equal(model, opened, task, loader, tokenizer, data.classes, data.templates)
    gc.collect()


@LEAVES_FILES_OPEN
def test_retrieval(tmp_path, model, tokenizer):
    colours = ["red", "green", "blue", "grey", "pink"]
    texts = [[f"{colour} thing number {i} of {i * i}" for colour in colours] for i in range(43)]
    rows = zip(texts, pictures(43, seed=5))
    write_tars(tmp_path / "wds_flickr30k", [{form: data, "txt": "\n".join(own)} for own, (form, data) in rows])
    (tmp_path / "wds_flickr30k" / "dataset_type.txt").write_text("retrieval\n")
    opened = open_set("flickr30k", tmp_path)
    data = builder.build_dataset(
        "wds/flickr30k",
        root=str(tmp_path / "wds_flickr30k"),
        transform=TRANSFORM,
        split="test",
        task="zeroshot_retrieval",
    )
    loader = torch.utils.data.DataLoader(data.batched(BATCH), batch_size=None)
    theirs = package_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    captions = [opened.source[i]["captions"] for i in range(len(opened.source))]
    evaluator = Retrieval(
        Encode(model), batches=batches_of(opened.source), captions=captions, tokenize=Tokenizer(77), top=(1, 5, 10)
    )
    found = dict(evaluator.run({}))
    for k in (1, 5, 10):
        assert found[f"image_to_text_r{k}"] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert found[f"text_to_image_r{k}"] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
    assert 0 < found["text_to_image_r10"] < 1
    gc.collect()
