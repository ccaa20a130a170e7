"""The experiment built from a config: method, networks, optimiser, mesh and the jitted training step."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import run_config, sizes
from detailclip_jax.data.caption_selection import num_captions
from detailclip_jax.data.regions import phrase_length
from detailclip_jax.data.views import captioned_crop
from detailclip_jax.kernels.chunked_logits import automatic_chunk_logits
from detailclip_jax.kernels.products import matmul_precision
from detailclip_jax.methods.encode import Encode, encoders
from detailclip_jax.methods.method import Forward, Loss, Method
from detailclip_jax.models import initial_values, lora
from detailclip_jax.models.networks import Networks
from detailclip_jax.models.registry import Network
from detailclip_jax.training import forward_pass, mixup, optimizer, schedules, sharding
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training.accumulation import PretrainingLoss
from detailclip_jax.training.forward_pass import ForwardPass, make_keys
from detailclip_jax.training.initial_state import InitialState
from detailclip_jax.training.step_values import Removal, StepValues, step_values, with_removed
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.train_step import ScheduledStep, Schedules, StepLayout, StepSetup, compiled
from detailclip_jax.training.trainable import Trainable
from detailclip_jax.types import Array, Batch, Keys, Leaf, Params, Scalar

# The width from which `settled` takes dots and a loop on a CPU.  A step of ViT-B/16 is then 1.28 times as fast (8.05
# and 6.29 s in turn; batch 4, float32, Intel with AVX512).
WIDE_ON_CPU = 768


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment(Trainable):
    """The functions and objects of one experiment of pretraining, for a run, a test or a notebook; see `Trainable`.

    The config is settled, and `forward_pass` has the networks for the mesh.
    """

    forward_pass: ForwardPass  # on the mesh
    unmasked_step: ScheduledStep  # that without patch dropout, for the end of a run; without dropout `train_step`
    forward: jax.stages.Wrapped  # (state, batch) -> Forward: masks, tokens, predicted pixels; for figures
    encode: Encode
    values: StepValues  # what `record` and `terms` call
    unmasked_values: StepValues  # the same of `unmasked_step`

    @property
    def method(self) -> Method:
        """The method."""
        return self.forward_pass.method

    @property
    def unmasked_from(self) -> int:
        """The number of steps after which a run sees all patches, see `views.patch_dropout_until`."""
        until, total = self.config.views.patch_dropout_until, self.config.total_steps
        return min(round(until * total), total - (until < 1))

    def step_after(self, num_done: int) -> ScheduledStep:
        """Returns the step that follows `num_done` steps of a run."""
        return self.train_step if num_done < self.unmasked_from else self.unmasked_step

    def state(self, params: Params, ema_params: Params | None = None) -> TrainState:
        """Returns a state of step 0 with these weights, placed on the mesh.

            networks, variables, config = interop.load(state_dict)
            config.total_steps = 1000
            experiment = build(config)
            state = experiment.state(variables["params"], variables["ema_params"])

        `params` has the student's weights, {network: nested dict of arrays}, for each network of `method.networks`;
        blocks may be stacked or not. `ema_params` has the teacher's; a network of the teacher that it lacks is a copy
        of the student's. Arrays are copied. All else is that of `init(config.seed)`: AdamW's moments, running
        statistics, the key; an anchor is a copy of the image encoder.

        Raises ValueError that names networks that are missing or that the method does not have, and arrays that are
        missing, unknown or of another shape.
        """
        return self.initial.put_weights(self.config.seed, params, ema_params or {}, self.state_shapes)

    def record(self, state: TrainState, batch: Batch, keys: Keys | None = None, mask: Leaf | None = None) -> Forward:
        """Runs the forward pass of the step that follows `state`, without its update; returns the record.

            record = experiment.record(state, experiment.put(batch))
            record.hidden.mask, record.heads["student_cls"]                              # [V, B, N], [V, B, C]
            record = experiment.record(state, batch, make_keys(jax.random.key(3), batch), mask)

        The teacher moves first, as in `train_step` (`config.ema.start = config.ema.end = 1` keeps it). `keys` are the
        random keys of the step and of each image, by default those that the step derives. `mask`, bool, is True where
        a patch is removed from the student; by default the method chooses. `batch` is that of `put`, with B images.

        Raises ValueError for a mask if the method removes no patches, for another shape or type, and for different
        numbers of removed patches if the student encodes the visible patches alone.
        """
        values, batch, removal = self._step_values(state, batch, mask)
        return values.record(state, batch, keys, self.schedules, removal)

    def terms(
        self, state: TrainState, batch: Batch, keys: Keys | None = None, mask: Leaf | None = None
    ) -> dict[str, Scalar]:
        """Computes the loss of the step that follows `state`, without its update; arguments and errors as of `record`.

            terms = experiment.terms(state, experiment.put(batch))      # {"clip": 2.77, "cls": 3.4, ..., "loss": 7.1}

        Returns float32 scalars: each term of eq. 10 before its weight, by name, the metrics that terms log, and "loss",
        the weighted sum. They equal those of `train_step` on the same state and batch.
        """
        values, batch, removal = self._step_values(state, batch, mask)
        return values.terms(state, batch, keys, self.schedules, removal)

    def _step_values(self, state: TrainState, batch: Batch, mask: Any) -> tuple[StepValues, Batch, Removal | None]:
        values = self.values if int(state.step) < self.unmasked_from else self.unmasked_values
        if mask is None:
            return values, batch, None
        return values, *with_removed(batch, mask, values.method, self.mesh)

    def replicated(self, state: TrainState) -> TrainState:
        """Returns the state with whole parameters on every device, as evaluation needs them."""
        weights = meshes.replicate((state.params, state.ema_params), self.mesh)
        return state.replace(params=weights[0], ema_params=weights[1])

    def parameter_table(self) -> str:
        """Formats pattern, group and number of the parameters, as printed when a run starts."""
        return optimizer.table_text(self.state_shapes.params, group_rules(self.config, self.method.networks))


def build(config: ConfigDict, mesh: Mesh | None = None) -> Experiment:
    """Builds the experiment of a resolved config, on all devices unless a mesh is given; computes nothing yet.

    Raises ValueError that names the field, its value and what to write instead.
    """
    mesh = meshes.make_mesh(fsdp=config.mesh.fsdp) if mesh is None else mesh
    config = settled(config, mesh)
    meshes.check_batch_size(config.batch_size, mesh, config.accumulation)
    chunked = ConfigDict(config.to_dict())
    if chunked.losses.chunk_logits is None:
        chunked.losses.chunk_logits = automatic_chunk_logits(meshes.device_memory(mesh))
    method, weights = methods.build(chunked), weight_shapes(config)
    axis, platform = meshes.batch_axis(mesh), meshes.platform_of(mesh)
    model = methods.build_networks(config, platform=platform)  # where a device has the whole batch: evaluation, exports
    on_mesh = methods.build_networks(config, axis, platform)  # in the step: BatchNorm's statistics are those of all
    if mesh.shape[meshes.FSDP] > 1:
        on_mesh = on_mesh.gathering(sharding.gather_layer)
    on_mesh = forward_of(config, method, on_mesh)
    setup = build_setup(config, on_mesh, weights.params)
    shapes = weights.replace(opt_state=jax.eval_shape(setup.optimizer.init, weights.params))
    shapes = sharding.placed(shapes, mesh, sharding.rules(method.networks, method.running))
    layout = StepLayout(mesh, sharding.specs(sharding.places(shapes)), axis)
    precision = config.model.matmul_precision
    step = unmasked = compiled(setup, layout, shapes, precision)
    values = unmasked_values = step_values(setup, model, layout, precision)
    if config.views.patch_dropout:
        whole = ConfigDict(chunked.to_dict())
        whole.views.patch_dropout = 0.0
        end = setup._replace(loss=loss_of(config, on_mesh._replace(method=methods.build(whole))))
        unmasked = compiled(end, layout, shapes, precision)
        unmasked_values = step_values(end, model, layout, precision)
    if config.accumulation > 1:  # a term that chunks cannot compute exactly is refused here, not when the run starts
        # with the sharding of `mesh.put`, for which the step is then not traced once more
        batch = jax.eval_shape(lambda: dummy_batch(config, config.batch_size))
        jax.eval_shape(step, shapes, jax.tree.map(lambda x: x.update(sharding=meshes.sharded(mesh)), batch))
    one_device = forward_of(config, method, model)

    def record(state: TrainState, batch: Batch) -> Forward:
        weights = state.params, state.ema_params, state.running, state.batch_stats
        keys = make_keys(jax.random.wrap_key_data(state.rng), batch)
        with matmul_precision(precision):
            made, _ = forward_pass.run(*weights, batch, keys, one_device)
        return made

    return Experiment(
        config=config,
        model=model,
        setup=setup,
        layout=layout,
        state_shapes=shapes,
        initial=_initial(*_recipe(config)),
        train_step=step,
        forward_pass=on_mesh,
        unmasked_step=unmasked,
        forward=jax.jit(record),
        encode=encoders(model, config),
        values=values,
        unmasked_values=unmasked_values,
    )


def settled(config: ConfigDict, mesh: Mesh) -> ConfigDict:
    """Returns the config with `model.remat` and `model.scan` chosen for the devices of a mesh where they are open.

    On a CPU they are dots and True for encoders of at least WIDE_ON_CPU, elsewhere none and False. Blocks that
    `optimizer.frozen` names one by one stay separate.
    """
    model = config.model
    if model.remat != "auto" and model.scan is not None:
        return config
    faster = meshes.platform_of(mesh) == "cpu" and sizes.size_of(model).width >= WIDE_ON_CPU
    scan = model.scan
    if scan is None:
        scan = faster and model.remat in ("auto", "dots") and ":" not in config.optimizer.frozen
    config = ConfigDict(config.to_dict())
    config.model.scan = scan
    if model.remat == "auto":
        config.model.remat = "dots" if faster and scan else "none"  # without a loop XLA does not recompute on a CPU
    return config.lock()


def group_rules(config: ConfigDict, networks: Mapping[str, Network]) -> tuple[optimizer.DecayRule, ...]:
    """Returns the rules that assign the networks' parameters to the groups of AdamW."""
    opt = config.optimizer
    adapters = lora.parse(opt.lora)
    return optimizer.rules(networks, config.model, opt.decay_1d, opt.decay_positions, opt.frozen, adapters)


def build_setup(config: ConfigDict, on_mesh: ForwardPass, params: Params) -> StepSetup:
    """Builds what a step computes; `params` are the parameters or their shapes."""
    networks, plan, views = on_mesh.method.networks, build_schedules(config, on_mesh.method), config.views
    groups = optimizer.labels(params, group_rules(config, networks))
    if {*jax.tree.leaves(groups)} == {optimizer.FROZEN}:
        raise ValueError(f"optimizer.frozen {config.optimizer.frozen!r} leaves nothing to train; name fewer networks")
    late = optimizer.late(params, networks) if plan.wait else None

    def adamw(plan: Schedules) -> optax.GradientTransformation:
        built = optimizer.adamw(config.optimizer, plan.learning_rate, plan.weight_decay, groups, plan.wait, late)
        return optimizer.scaled_rates(built, params, config.optimizer)

    setup = StepSetup(
        loss_of(config, on_mesh),
        adamw=adamw,
        groups=groups,
        schedules=plan,
        networks=networks,
        running=on_mesh.method.running,
        center_momentum=config.losses.center_momentum,
    )
    if views.mixup or views.cutmix:
        setup = setup._replace(mix=functools.partial(mixup.mix, mixup=views.mixup, cutmix=views.cutmix))
    return setup


def loss_of(config: ConfigDict, on_mesh: ForwardPass) -> PretrainingLoss:
    """Returns the loss of a forward pass on the mesh."""
    return PretrainingLoss(on_mesh, config.losses.clip_block, config.accumulation)


def forward_of(config: ConfigDict, method: Method, model: Networks) -> ForwardPass:
    """Returns the forward pass of a method with these networks, on pixels normalised as the config says."""
    return ForwardPass(method, model, tuple(config.preprocess.mean), tuple(config.preprocess.std))


def weight_shapes(config: ConfigDict) -> TrainState:
    """Returns the shapes of a state without optimizer moments: of parameters, teacher, BatchNorm, running statistics.

    These are all that loading weights needs, and computing them takes no mesh, no schedules and no `total_steps`.  They
    are computed once per config and process.
    """
    return _initial(*_recipe(config)).shapes


def _recipe(config: ConfigDict) -> tuple[str, Any]:
    """What decides the weights of step 0: the config, and the method that its name stands for now."""
    return run_config.to_json(config), methods.METHODS.get(config.method)


@functools.lru_cache(maxsize=128)
def _initial(config_text: str, method: Any) -> InitialState:
    config = run_config.from_json(config_text)
    forward = forward_of(config, methods.build(config), methods.build_networks(config))
    adapters, targets = lora.parse(config.optimizer.lora), config.optimizer.lora_targets

    def make(key: Array) -> tuple[dict[str, Params], dict[str, Array]]:
        variables, record = forward_pass.init(key, dummy_batch(config), forward)
        variables["params"] = lora.init(variables["params"], adapters, targets, key)
        return variables, forward_pass.running_statistics(record, forward.method)

    start = initial_values.start(make)
    running = {name: jax.ShapeDtypeStruct(each.shape, each.dtype) for name, each in start.aux.items()}
    return InitialState(start, forward.method.ema, running, has_anchor=bool(forward.method.anchors))


def build_schedules(config: ConfigDict, method: Method) -> Schedules:
    """Builds the schedules over `config.total_steps`, with a warm-up that fits into the run.

    Raises ValueError if `total_steps` is not set.
    """
    opt, losses, total = config.optimizer, config.losses, config.total_steps
    if total is None:
        raise ValueError("total_steps is not set; set config.total_steps, or call run_config.resolve(config, examples)")
    warmup = schedules.clamp_warmup(warmup_steps(config), total)
    end, decay = opt.weight_decay_end, opt.weight_decay
    temperatures = {}
    for loss in method.losses:
        if loss.temperature:
            first, last = losses[loss.temperature]
            rise = schedules.epoch_warmup(first, last, losses.temperature_epochs, steps_of_epoch(config))
            temperatures[loss.name] = rise
    return Schedules(
        learning_rate=schedules.warmup_cosine(
            opt.warmup_start, opt.learning_rate, opt.learning_rate_end, warmup, total, opt.peak_twice
        ),
        weight_decay=np.float32(decay) if end is None else schedules.cosine(decay, end, total),
        ema_momentum=schedules.cosine(config.ema.start, config.ema.end, total),
        temperatures=temperatures,
        weights=build_ramps(losses.ramps, method.losses, total),
        anchor=np.int32(round(losses.ramps.get(method.anchor_of, (0.0, 0.0))[0] * total)),
        wait=np.int32(round(opt.frozen_prototype_epochs * steps_of_epoch(config))),
    )


def build_ramps(ramps: ConfigDict, losses: Iterable[Loss], total_steps: int) -> dict[str, schedules.Schedule]:
    """Builds the schedules of the weights that are not constant, by name of the term.

    Raises ValueError for a weight that would stay 0 to the end of the run.
    """
    built: dict[str, schedules.Schedule] = {}
    for loss in losses:
        shares = ramps.get(loss.weight_name, (0.0, 0.0))
        first, last = (round(share * total_steps) for share in shares)
        if first >= total_steps:
            raise ValueError(
                f"losses.ramps.{loss.weight_name} {tuple(shares)} keeps the weight at 0 in all {total_steps} steps of "
                "the run; let it rise earlier, or set the weight to 0"
            )
        if any(shares):
            built[loss.name] = schedules.ramp(loss.weight, first, last)
    return built


def warmup_steps(config: ConfigDict) -> int:
    """Returns the length of the configured warm-up in steps."""
    steps = config.optimizer.warmup_steps
    return round(config.optimizer.warmup_epochs * steps_of_epoch(config)) if steps is None else steps


def steps_of_epoch(config: ConfigDict) -> int:
    """Returns `steps_per_epoch`; if the config is not resolved, `total_steps // num_epochs`, at least 1."""
    return config.steps_per_epoch or max(config.total_steps // config.num_epochs, 1)


def dummy_batch(config: ConfigDict, size: int = 1, num_patches: int = 0, patch_size: int = 0) -> dict[str, Any]:
    """Makes a batch of zeros, and grids of ones, with the shapes of the config's data pipeline.

    Native images have `num_patches`, by default the largest number of the config, of `patch_size`, by default the
    model's.
    """
    crops, native = config.views.crops, config.views.native
    patches = num_patches or max(native, default=0), 3 * (patch_size or sizes.size_of(config.model).patch_size) ** 2
    shapes = {name: patches if native else (c.size, c.size, 3) for name, c in crops.items()}
    drawn = {"grid": {name: jnp.ones((size, c.count, 2), jnp.int32) for name, c in crops.items()}} if native else {}
    grids = {name: (size, c.count, c.mask_grid**2) for name, c in crops.items() if c.get("mask_grid", 0)}
    hidden = {"hidden": {name: jnp.zeros(shape, bool) for name, shape in grids.items()}}
    texts = size, config.data.negatives, config.model.context_length
    false = {"false": jnp.zeros(texts, jnp.int32), "false_valid": jnp.zeros(texts[:2], bool)}
    return {
        **(hidden if grids else {}),
        **drawn,
        **(false if config.data.negatives else {}),
        **_regions(config, size),
        "image": {name: jnp.zeros((size, c.count, *shapes[name]), jnp.uint8) for name, c in crops.items()},
        "box": {name: jnp.zeros((size, c.count, 4), jnp.float32) for name, c in crops.items()},
        "text": jnp.zeros((size, num_captions(config.data), config.model.context_length), jnp.int32),
        "label": jnp.zeros((size,), jnp.int32),
    }


def _regions(config: ConfigDict, size: int) -> dict[str, Array]:
    data, crops = config.data, config.views.crops
    if not data.regions:
        return {}
    views = size, crops[captioned_crop(crops)].count, data.regions
    phrases = size, data.regions, 1 + data.negatives
    return {
        "regions": jnp.zeros((*views, 4), jnp.float32),
        "regions_valid": jnp.zeros(views, bool),
        "region_text": jnp.zeros((*phrases, phrase_length(config)), jnp.int32),
        "region_text_valid": jnp.zeros(phrases, bool),
    }
