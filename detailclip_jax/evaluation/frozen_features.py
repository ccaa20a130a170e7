"""Classifiers on the frozen class token: fitted on the training split of a set, evaluated on its test split."""

from collections.abc import Callable

from detailclip_jax.evaluation import knn, linear_probe, paper_numbers
from detailclip_jax.evaluation.evaluator import Measured, SetEvaluator, Setting
from detailclip_jax.evaluation.image_batches import Subset, resize_and_crop
from detailclip_jax.types import Params


def nearest_neighbours(setting: Setting, name: str) -> SetEvaluator:
    """k-NN on the class token: resize to 256, crop to 224."""
    return _on_features(setting, name, knn.knn_metrics, f"cosine, T {knn.TEMPERATURE}")


def linear(setting: Setting, name: str) -> SetEvaluator:
    """Logistic regression on the class token before the projection."""
    protocol = "logistic regression, L-BFGS, C on a fifth of train"
    return _on_features(setting, name, linear_probe.linear_metrics, protocol)


def _on_features(setting: Setting, name: str, judge: Callable[..., Measured], protocol: str) -> SetEvaluator:
    """An evaluator that passes features and labels of the training and the test split to `judge`."""
    train, test = (setting.sets.labelled(name, split) for split in ("train", "test"))
    embedder, transform = setting.embedder, resize_and_crop(setting.transform)
    metric = "mean_per_class" if name in (*paper_numbers.MEAN_PER_CLASS, "caltech101") else "accuracy"
    part = ""
    if isinstance(train.source, Subset):
        count, total = len(train.source), len(train.source.source)
        part = f"fitted on {count:,} of {total:,} training examples (--num-train-examples)"
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes)) or "the same classes in another order"
        raise ValueError(f"{name}: its train and test splits have different classes: {odd}")

    def run(params: Params) -> Measured:
        known, judged = (embedder.images(params, data, transform, "cls") for data in (train, test))
        arrays = (known.features, known.labels, judged.features, judged.labels)
        for name, value in judge(*arrays, len(test.classes), metric=metric):
            value.n_train = len(known.features)
            value.remark = "; ".join(filter(None, (value.remark, part)))
            yield name, value

    both = test._replace(fingerprint=f"{train.fingerprint}+{test.fingerprint}")
    return SetEvaluator(("image",), run, both, protocol)
