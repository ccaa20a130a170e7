"""Pretraining as the task of the loop: assembles a run from data, method, evaluators and report."""

import collections
import itertools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from detailclip_jax import evaluation, methods
from detailclip_jax.config import run_config, sizes
from detailclip_jax.config.data_path import components, is_endless
from detailclip_jax.config.declarations import FROM_0
from detailclip_jax.data import false_texts, pipeline, regions
from detailclip_jax.data.bad_records import bad_list
from detailclip_jax.data.caption_lengths import TEXTS, lengths_within, longest_text, trimmed
from detailclip_jax.data.caption_selection import num_captions, reset_num_captions
from detailclip_jax.data.caption_warnings import check_some_caption, sample_of, warnings_of
from detailclip_jax.data.mixture import members_of, summary
from detailclip_jax.data.preprocessing import NATIVE, transform_of
from detailclip_jax.data.views import LARGE, check_reducing_gap, crops_from_config
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.data.workers import usable_workers
from detailclip_jax.evaluation import held_out_pairs, run_figures, run_report, tasks
from detailclip_jax.evaluation.metrics import split_name
from detailclip_jax.evaluation.subject import WEIGHTS
from detailclip_jax.interop import published
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.runtime import provenance, wandb_writer
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.terminal import counted, plain
from detailclip_jax.training import adopted_config, experiment, warm_start
from detailclip_jax.training.experiment import dummy_batch
from detailclip_jax.training.mesh import make_mesh, put, replicated, sharded
from detailclip_jax.training.schedules import clamp_warmup
from detailclip_jax.training.session import RUN_AHEAD, Contrast, Finding, Run, Task, slower
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import Array, Batch, PyTree

LESS_MEMORY = (
    "a smaller --config.batch_size, --config.accumulation=2, --config.model.remat=dots or full, "
    "--config.model.dtype=bfloat16, or --config.mesh.fsdp over several devices; "
    "python -m detailclip_jax.doctor --for=h100x8 --config=FILE says before a run what fits such devices"
)

REPEATS = (
    "a batch of {batch_size} contains some of the {examples} examples{of_set} more than once, and the contrastive loss "
    "counts their own captions as negatives; use --config.batch_size={enough} or less, then it happens only at the end "
    "of an epoch"
)


def prepare(
    config: ConfigDict, workdir: str | Path, given: Iterable[str] = (), written: ConfigDict | None = None
) -> Run:
    """Checks the config and the workdir, opens the data and builds the experiment; writes nothing.

    `given`: dotted names of fields that the user has set (see `adopted_config.adopt` and `reset_num_captions`).
    `written`: the config of the file; a loss weight that is given or differs from it must be one that the method reads.
    Raises ValueError or FileNotFoundError, with a message for the user, if the config or the data are invalid or the
    workdir belongs to a run with another config.
    """
    given = list(given)
    published.fetch_all(config, workdir)
    config = adopted_config.adopt(reset_num_captions(config, given), given, workdir)
    validate(config)
    if written is not None:
        check_weights(config, written, workdir, given)
    source = open_source(config)
    check_evaluators(config)
    tokenizer_of(config, config.data.keep_eot).check()
    config = run_config.resolve(config, len(source))
    built = experiment.build(config)
    config = built.config
    evaluation.check(built.encode, config)
    caption_warnings: list[str] = []
    if built.method.has_text:
        samples = sample_of(source)
        check_some_caption(samples, config.data.caption)
        caption_warnings = warnings_of(samples, config, built.method.contrast)
    run_config.check_workdir(Path(workdir), config)
    console = Console(enabled=jax.process_index() == 0)
    return Run(config, Path(workdir), built, source, console, task_of(caption_warnings), given=given)


def check_evaluators(config: ConfigDict) -> None:
    """Raises ValueError for invalid evaluators, and if `config.best_metric` has not the form of a score of them.

    Whether the evaluator has a metric of this name shows only when it has measured.
    """
    evaluators = evaluation.plan(config)
    if not config.best_metric:
        return
    task, *rest = split_name(config.best_metric)
    missing = tasks.absent(config)
    if task in missing:
        raise ValueError(f"best_metric {config.best_metric!r}: {task} cannot run here: {missing[task]}")
    measured = [name for name in evaluators if name not in missing]
    if task in measured and len(rest) == 2 and rest[0] in WEIGHTS:
        return
    if not measured:
        raise ValueError(f"best_metric {config.best_metric!r}: no evaluator; {held_out_pairs.none_because(config)}")
    known = [f"{name}/{weights}/METRIC" for name in measured for weights in WEIGHTS]
    raise ValueError(unknown("best_metric", config.best_metric, known))


def validate(config: ConfigDict) -> None:
    """Raises ValueError for the first field with an invalid value, and for two fields that contradict each other."""
    methods.check_name(config.method)
    run_config.check_fields(config)
    components(config.data)
    check_reducing_gap(config.data.reducing_gap, "data.reducing_gap")
    _check_crops(config)
    transform_of(config)
    views = config.views
    if views.native and config.preprocess.resize != NATIVE:
        raise ValueError(
            f"views.native {views.native} trains on images in their own aspect, but preprocess.resize "
            f"{config.preprocess.resize!r} evaluates on squares; give --config.preprocess.resize=native"
        )
    for name in ("native_budget", "native_patch_sizes"):
        if views[name] and not views.native:
            raise ValueError(f"views.{name} {views[name]} is for native images, but views.native is (); set both")
    sizes.images_of_batches(config)
    if config.best_metric and not config.evaluate_every:
        raise ValueError(
            f"best_metric {config.best_metric!r} is only known if the run evaluates; "
            "set evaluate_every to a number of steps, or best_metric to ''"
        )
    if views.patch_dropout_until < 1 and not views.patch_dropout:
        raise ValueError(
            f"views.patch_dropout_until {views.patch_dropout_until} is where patch dropout ends, but "
            "views.patch_dropout is 0; set that too, or this one to 1"
        )
    wandb_writer.check(config.logging.wandb)
    _check_method(config)
    num_captions(config.data)  # after the method, which says which caption rules it needs
    false_texts.check(config)
    regions.check(config)


def check_weights(config: ConfigDict, written: ConfigDict, workdir: str | Path, given: Container[str] = ()) -> None:
    """Raises ValueError for a loss weight that neither the file nor the run in `workdir` has and the method ignores.

    Also for one of the `given` names, with any value, unless the run goes on.
    """
    run = adopted_config.run_of(config, workdir)
    methods.check_weights(config, run or written, () if run else given)


def _check_crops(config: ConfigDict) -> None:
    """Checks that crops consist of whole patches, and that large crops have the size `model.image_size`.

    The decoder and the masks use the patch grid of `model.image_size`.
    """
    sizes.num_side_patches(config.model)
    patch_size = sizes.size_of(config.model).patch_size
    for name, crop in crops_from_config(config.views.crops).items():
        sizes.whole_patches(f"views.crops.{name}.size", crop.size, patch_size)
        if name == LARGE and crop.size != config.model.image_size:
            raise ValueError(
                f"views.crops.large.size {crop.size} must equal model.image_size {config.model.image_size}"
            )


def _check_method(config: ConfigDict) -> None:
    """Checks the fields that the method must read: mixed or smoothed labels, the masking view, rates of networks.

    Captions would stay those of one of the two mixed images.
    """
    method, views = methods.build(config), config.views
    of_labels = {"views.mixup": views.mixup, "views.cutmix": views.cutmix}
    for name, value in (of_labels | {"losses.label_smoothing": config.losses.label_smoothing}).items():
        if value and not any(loss.labels for loss in method.losses):
            raise ValueError(
                f"{name} {value} changes labels, but method {config.method} has no term that reads them; set it to 0"
            )
    if views.teacher == "enclosing" and "enclosing" not in method.targets:
        raise ValueError(
            f"views.teacher 'enclosing': the teacher of method {config.method} does not read the enclosing crop, by "
            "which other methods mask; set --config.views.teacher=same"
        )
    for network, rate in config.optimizer.part_rates.items():
        if network not in method.networks:
            raise ValueError(unknown("network in optimizer.part_rates", network, sorted(method.networks)))
        if isinstance(rate, bool) or rate not in FROM_0:
            raise ValueError(f"optimizer.part_rates.{network} {rate!r} must be a number of at least 0, for example 0.1")


def open_source(config: ConfigDict) -> pipeline.Source:
    """Opens the data source of the run.  Raises ValueError that says what to install if a package is missing."""
    try:
        return pipeline.open_source(config)
    except ImportError as error:
        raise ValueError(f"data.source {config.data.source!r}: {error}") from error


def introduce(run: Run, caption_warnings: Sequence[str] = ()) -> None:
    """Prints what is about to run: method, devices, data, length, schedules, parameters, and warnings of captions."""
    config, say = run.config, run.console.say
    devices = run.experiment.mesh.devices.flat
    say(f"{config.method} {config.model.size} on {len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    images, mean = sizes.images_of_batches(config).values(), sizes.mean_batch_size(config)
    num_seen = round(config.total_steps * mean)
    say("\n".join([f"data {config.data.source}: {len(run.source):,} examples", *summary(run.source, num_seen)]))
    if pairs := held_out_pairs.find(config):
        say(f"held out from training: {pairs.origin}")
    lines = [*unread_crops(run), *unread_texts(run), *unread_size(run), *first_run_missing(run)]
    lines += rate_of_another_batch(run)
    lines += repeats(run.source, max(images)) if run.experiment.method.has_text else []
    for line in (*lines, *caption_warnings):
        run.console.warn(line)
    epochs = run_config.num_epochs(config, len(run.source))
    say(f"{counted(config.total_steps, 'step')} of {span(images)}, {plain(epochs)} epochs; workdir {run.workdir}")
    configured = experiment.warmup_steps(config)
    steps = clamp_warmup(configured, config.total_steps)
    shortened = f" (the {configured:,} of the config do not fit into the run)" if steps != configured else ""
    warmup = f"{counted(steps, 'step')} of warm-up{shortened}"
    say(f"schedules count {counted(config.steps_per_epoch, 'step')} as an epoch; {warmup}")
    if config.views.patch_dropout:
        say(f"patch dropout {config.views.patch_dropout:g} in the first {run.experiment.unmasked_from:,} steps")
    say(run.experiment.parameter_table())
    if config.mesh.fsdp > 1:
        say(run.experiment.sharding_table())


def span(numbers: Iterable[int]) -> str:
    """Formats the smallest and the largest of some numbers: "16 to 128", or "16" if they are equal."""
    ends = sorted(set(numbers))
    return " to ".join(map(str, dict.fromkeys([ends[0], ends[-1]])))


def unread_crops(run: Run) -> list[str]:
    """Returns a warning for every crop that is cut although no pass encodes it, else an empty list."""
    method = run.experiment.method
    return [
        f"views.crops.{name} is cut from every image, but {method.name} does not encode it; leave it out of the config"
        for name in run.config.views.crops
        if name not in method.crops
    ]


def unread_texts(run: Run) -> list[str]:
    """Returns a warning for each kind of texts that is loaded for every example although no term reads it."""
    return [
        f"data.{name} {run.config.data[name]}: no term of the run reads them; give a term that does a weight "
        "(docs/methods.md), or set the field to 0"
        for name in methods.unread_texts(run.experiment.method, run.config)
    ]


def unread_size(run: Run) -> list[str]:
    """Returns a warning if `model.custom` has widths and depths that the run does not take, else an empty list."""
    model = run.config.model
    if not model.custom or model.size == sizes.CUSTOM:
        return []
    return [f"model.custom is not read, because model.size is {model.size}; for these sizes set model.size=custom"]


def first_run_missing(run: Run) -> list[str]:
    """Returns a warning if the method continues a run of another one and none is given, else an empty list.

    Stickers are exempt: their config has rates for training from scratch.
    """
    config, first = run.config, run.experiment.method.continues
    if not first or config.init or is_endless(config.data):
        return []
    return [
        f"{config.method} continues a run of {first}, but there is no --config.init: it trains from scratch, at the "
        f"learning rate {config.optimizer.learning_rate:g}; train {first} first and give --config.init=ITS-WORKDIR"
    ]


def rate_of_another_batch(run: Run) -> list[str]:
    """Returns a warning if the user has set the batch size and not the learning rate, else an empty list.

    Stickers are exempt: the rates of their config are for runs of minutes, with any batch.
    """
    config = run.config
    if "batch_size" not in run.given or "optimizer.learning_rate" in run.given or is_endless(config.data):
        return []
    return [
        f"batch_size is set to {config.batch_size}, and optimizer.learning_rate stays "
        f"{config.optimizer.learning_rate:g}; if that rate is for another batch size, set "
        "--config.optimizer.learning_rate too"
    ]


def contrast_of(run: Run) -> Contrast | None:
    """Returns the contrast that the session watches, from the end of the warm-up; None if the method has none."""
    config, term = run.config, run.experiment.method.contrast
    after = clamp_warmup(experiment.warmup_steps(config), config.total_steps)
    return Contrast(term, config.batch_size, after) if term and not config.views.native_budget else None


def repeats(source: pipeline.Source, batch_size: int) -> list[str]:
    """Returns one warning for every set that has fewer examples than its share of a batch."""
    members, lines = members_of(source), []
    total = sum(member.weight for member in members)
    for member in members:
        examples, of_set = len(member.source), f" of {member.name}" if len(members) > 1 else ""
        if member.weight * batch_size > examples * total:
            enough = examples * total // member.weight
            lines.append(REPEATS.format(batch_size=batch_size, examples=examples, of_set=of_set, enough=enough))
    return lines


def _fresh(run: Run) -> TrainState:
    """The state of step 0, with the networks of `config.init` and those of terms loaded."""
    state, lines = run.experiment.init(run.config.seed), []
    if run.config.init:
        state, lines = warm_start.load(run.config, state)
    state, of_terms = warm_start.load_terms(run.config, state)
    if lines := lines + of_terms:
        run.console.say("\n".join(lines))
    return state


def open_batches(run: Run, examples: int) -> Any:
    """Opens this process's batches; starts after `examples` examples, counted over all processes.

    Returns a Pipeline; with several processes and lengths of captions, `SameLength` over it.
    """
    config = ConfigDict(run.config.to_dict())
    config.data.num_workers = usable_workers(config.data.num_workers)
    if config.data.num_workers < run.config.data.num_workers:
        run.console.say(
            f"data.num_workers reduced from {run.config.data.num_workers} to {config.data.num_workers}: too few cores"
        )
    where = jax.process_index(), jax.process_count()
    batches = pipeline.open_pipeline(config, run.source, *where, examples, bad_list(run.workdir, *where))
    lengths = text_lengths(run)
    return SameLength(batches, lengths, run.experiment.mesh) if jax.process_count() > 1 < len(lengths) else batches


class SameLength:
    """The batches of a Pipeline with captions of one length on all processes, which all read equally many batches.

    It is the first of the increasing `lengths` that holds the longest caption of a global batch, as in one process.
    The devices compare the longest captions of the processes RUN_AHEAD batches in advance. So they do it before the
    steps that may be unfinished, and no step waits for the answer.
    """

    def __init__(self, batches: Any, lengths: Sequence[int], mesh: Mesh):
        self._batches, self._lengths, self._mesh = batches, lengths, mesh
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._ahead: collections.deque[tuple[Batch | Exception, int, int, Array]] = collections.deque()
        self.num_bad = self.num_truncated = 0  # without those of the batches that are read in advance

    def __next__(self) -> Batch:
        while len(self._ahead) <= RUN_AHEAD:
            self._ahead.append(self._read())
        batch, self.num_bad, self.num_truncated, longest = self._ahead.popleft()
        if isinstance(batch, Exception):
            raise batch
        return trimmed(batch, self._lengths, int(longest))

    def _read(self) -> tuple[Batch | Exception, int, int, Array]:
        """Returns a batch, or the error of reading it, which is raised when the run comes to this batch."""
        try:
            batch = next(self._batches)
            length = longest_text(batch)
        except Exception as error:
            batch, length = error, 0
        here = np.full(len(self._mesh.local_devices), length, np.int32)
        longest = self._largest(put({"longest": here}, self._mesh)["longest"])
        return batch, self._batches.num_bad, self._batches.num_truncated, longest

    def close(self) -> None:
        """Closes the Pipeline."""
        self._batches.close()


def trim(run: Run, batch: Batch) -> Batch:
    """Cuts the captions of a batch to a sufficient length; with several processes `SameLength` has done it already."""
    return trimmed(batch, text_lengths(run)) if jax.process_count() == 1 else batch


def about_batch(run: Run, batch: PyTree) -> str:
    """Says for which batches a program is, where a run has several."""
    words = f" for captions of up to {batch['text'].shape[-1]} tokens" if len(text_lengths(run)) > 1 else ""
    if "grid" not in batch:
        return words
    size, _, num_patches, values = batch["image"][LARGE].shape
    return f"{words} for {size} images of up to {num_patches} patches of {math.isqrt(values // 3)} pixels"


def text_lengths(run: Run) -> tuple[int, ...]:
    """Returns the lengths that a batch's captions can be cut to.

    Captions are not cut for methods without captions, for text encoders in which padding has an effect, and, if
    captions lose their end token, for terms that also read words that the text encoder does not.
    """
    config, method = run.config, run.experiment.method
    trims = method.has_text and TextStyle(**config.model.text_style).trims
    reads_all = any(loss.whole_captions for loss in method.losses) and not config.data.keep_eot
    buckets = config.data.text_buckets if trims and not reads_all else ()
    return lengths_within(buckets, config.model.context_length)


def batch_shapes(run: Run) -> list[PyTree]:
    """Returns shapes and shardings of every kind of global batch: lengths of captions, patches of native images."""
    shapes = []
    images, patch_sizes = sizes.images_of_batches(run.config), run.config.views.native_patch_sizes or (0,)
    for (num_patches, size), patch_size in itertools.product(images.items(), dict.fromkeys(patch_sizes)):
        kind = size, num_patches, patch_size
        batch = jax.eval_shape(lambda kind=kind: dummy_batch(run.config, *kind))
        batch = jax.tree.map(lambda x: x.update(sharding=sharded(run.experiment.mesh)), batch)
        texts = {name: batch[name] for name in TEXTS if name in batch}
        for length in text_lengths(run):
            cut = {
                name: text.update(shape=(*text.shape[:-1], min(length, text.shape[-1]))) for name, text in texts.items()
            }
            shapes.append({**batch, **cut})
    return shapes


class Evaluation:
    """Runs the evaluators of pretraining, which are built at the first evaluation of a run, on all sets of weights."""

    def __init__(self):
        """No run has begun."""
        self._interrupt: Interrupt | None = None
        self._evaluators: Mapping[str, Callable[[], evaluation.Evaluator]] = {}

    def __call__(self, run: Run, interrupt: Interrupt, state: TrainState, step: int) -> Mapping[str, float]:
        """Returns the scores, "name/weights/metric" -> value; `interrupt` is one object for the whole run."""
        if interrupt is not self._interrupt:
            self._evaluators = evaluation.of_run(interrupt.between(run.experiment.encode), run.config)
            self._interrupt = interrupt
        weights = evaluation.all_weights(run.experiment.replicated(state))
        return evaluation.run(self._evaluators, weights, step, run.console.live)


def write_results(run: Run, state: TrainState, step: int, scores: Mapping[str, float], data: str) -> None:
    """Writes the table and the figures of pretraining; `data` describes problems of the training data."""
    if jax.process_index() == 0:
        run.console.say(run_report.write(run.workdir, scores, run.config, step, data))
    run.console.live("drawing the figures ...")
    try:
        figures = run_figures.write(run.workdir, run.experiment, run.experiment.replicated(state))
        run.console.say("".join(f"{file}\n" for file in figures))
    except ImportError as error:  # figures need an optional package; the run and its table are complete without
        run.console.warn(f"no figures: {error}")


def images(run: Run, state: TrainState) -> Mapping[str, Any]:
    """The CLS attention and the kept patches of held-out images, for TensorBoard; none without matplotlib."""
    try:
        return run_figures.images(run.experiment, state)
    except ImportError:  # the end of the run says so
        return {}


def gentler(run: Run) -> str:
    """Says how to go on from a checkpoint after a loss that is not finite."""
    return (
        "The same command would come to the same step.  Start from there with a gentler optimiser: another "
        f"--workdir, --config.init={run.workdir}, {slower(run)}"
    )


def _origin(run: Run) -> Finding:
    """Where the networks start, with a warning if the method continues a run that is not given."""
    origin = f"from {run.config.init}" if run.config.init else "from scratch"
    return Finding("; WARNING: ".join([origin, *first_run_missing(run)]))


def _divided_batch(run: Run) -> Finding:
    """Checks that the batch divides over processes; devices and chunks are checked when the experiment is built.

    It warns of a learning rate that was chosen for another batch size.
    """
    size, chunks, devices = run.config.batch_size, run.config.accumulation, run.experiment.mesh.devices.size
    if size % jax.process_count():
        raise ValueError(f"batch_size {size} does not divide over {jax.process_count()} processes")
    images = sizes.images_of_batches(run.config).values()
    divided = f" in {chunks} chunks of {span(n // devices // chunks for n in images)}" if chunks > 1 else ""
    text = f"{span(images)} pairs: {span(n // devices for n in images)} per device{divided}"
    return Finding("; WARNING: ".join([text, *rate_of_another_batch(run)]))


def _readable_data(run: Run, caption_warnings: Sequence[str]) -> Finding:
    """Checks that this process can read the data, and that the data are the same on all processes."""
    fingerprint, members = provenance.data_fingerprint(run.source), members_of(run.source)
    sets = f" ({run.source.name})" if len(members) > 1 else ""
    ends = itertools.accumulate(len(member.source) for member in members)
    height, width = [pipeline.read(run.source, end - 1)[1].shape[:2] for end in ends][-1]
    text = f"{run.config.data.source}: {len(run.source):,} examples{sets}, the last image {width} x {height} pixels"
    return Finding("; WARNING: ".join([f"{text}, fingerprint {fingerprint}", *caption_warnings]), int(fingerprint, 16))


def _share(run: Run) -> tuple[Any, PyTree]:
    """The experiment of one chunk of a device's images, on that device, and the shapes of this chunk."""
    config = ConfigDict(run.config.to_dict())
    if config.views.patch_dropout_until < 1:
        config.views.patch_dropout = 0.0  # the end of the run needs more memory
    images, views = sizes.images_of_batches(run.config), run.config.views
    num_patches = max(images, key=lambda num: (num * images[num], images[num]))
    config.batch_size = images[num_patches] // run.config.accumulation // run.experiment.mesh.devices.size
    config.accumulation, config.losses.clip_block = 1, 0  # small: all logits at once
    if run.experiment.forward_pass.model.gathers and run.config.model.remat == "none":
        config.model.remat = "dots"  # see `models.block.gathered`
    alone = experiment.build(config, make_mesh(run.experiment.mesh.local_devices[:1]))
    patch_size = max(views.native_patch_sizes, default=0)
    return alone, jax.eval_shape(lambda: dummy_batch(run.config, config.batch_size, num_patches, patch_size))


def task_of(caption_warnings: Sequence[str] = ()) -> Task:
    """Returns the task of pretraining; `caption_warnings` are those of `data.caption_warnings`."""
    return Task(
        terms=lambda run: list(run.experiment.method.terms),
        introduce=lambda run: introduce(run, caption_warnings),
        fresh=_fresh,
        open_batches=open_batches,
        batch_shapes=batch_shapes,
        examples=lambda run, steps: pipeline.examples_after(run.config, steps),
        trim=trim,
        about_batch=about_batch,
        evaluate=Evaluation(),
        finish=write_results,
        findings={"start": _origin, "batch": _divided_batch, "data": lambda run: _readable_data(run, caption_warnings)},
        share=_share,
        less_memory=LESS_MEMORY,
        gentler=gentler,
        images=images,
        contrast=contrast_of,
    )


PRETRAINING = task_of()
