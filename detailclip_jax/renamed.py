"""Former names of modules and functions.  They keep working for two minor versions, with a DeprecationWarning."""

import importlib
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "detailclip_jax."
RENAMED = {  # former name: (present name, version that no longer has the former one)
    "convert.shard": ("convert.output_shard", "0.3"),
    "data.blocks": ("data.block_masks", "0.3"),
    "data.budget": ("data.resource_budget", "0.3"),
    "data.caption_rules": ("data.caption_selection", "0.3"),
    "data.images": ("data.image_operations", "0.3"),
    "data.labelled.builders": ("data.labelled.tfds_sets", "0.3"),
    "data.lengths": ("data.caption_lengths", "0.3"),
    "data.native": ("data.native_aspect", "0.3"),
    "evaluation.detail_page": ("evaluation.detail_report", "0.3"),
    "evaluation.paper": ("evaluation.paper_numbers", "0.3"),
    "interop.hub": ("interop.hub_configs", "0.3"),
    "interop.huggingface": ("interop.huggingface_names", "0.3"),
    "interop.measure": ("interop.model_sizes", "0.3"),
    "interop.notes": ("interop.export_notes", "0.3"),
    "interop.own": ("interop.own_safetensors", "0.3"),
    "interop.reference": ("interop.reference_names", "0.3"),
    "interop.timm_vit": ("interop.timm_names", "0.3"),
    "methods.running": ("methods.running_statistics", "0.3"),
    "models.patches": ("models.patchify", "0.3"),
    "models.text": ("models.text_encoder", "0.3"),
    "models.towers": ("models.networks", "0.3"),
    "training.checksums": ("training.state_checksums", "0.3"),
    "training.manifest": ("training.checkpoint_manifest", "0.3"),
    "training.mixing": ("training.mixup", "0.3"),
    "training.programs": ("training.compiled_steps", "0.3"),
    "dense.taps": ("models.taps", "0.3"),
    "convert.beam": ("convert.beam_engine", "0.3"),
    "convert.local": ("convert.local_engine", "0.3"),
    "dense.dense_experiment.Experiment": ("dense.dense_experiment.DenseExperiment", "0.3"),
    "dense.detection.instance_sets": ("dense.detection.detection_set", "0.3"),
    "dense.paper": ("evaluation.paper_numbers", "0.3"),
    "evaluation.metrics.class_embeddings": ("inference.class_embeddings.class_embeddings", "0.3"),
    "evaluation.metrics.class_texts": ("inference.class_embeddings.class_texts", "0.3"),
    "evaluation.metrics.normalise": ("inference.class_embeddings.normalise", "0.3"),
    "evaluation.metrics.owners": ("inference.class_embeddings.owners", "0.3"),
    "evaluation.run_evaluators.EVALUATORS": ("evaluation.tasks.EVALUATORS", "0.3"),
    "evaluation.run_evaluators.absent": ("evaluation.tasks.absent", "0.3"),
    "evaluation.run_evaluators.all_weights": ("evaluation.subject.all_weights", "0.3"),
    "evaluation.run_evaluators.limited": ("evaluation.tasks.limited", "0.3"),
    "evaluation.run_evaluators.plan": ("evaluation.tasks.plan", "0.3"),
    "interop.exported_model": ("interop.model_to_export", "0.3"),
    "interop.functions": ("interop.compiled_functions", "0.3"),
    "losses.block_targets": ("losses.beta", "0.3"),
    "losses.contrastive": ("losses.simclr", "0.3"),
    "losses.contrastive.byol_loss": ("losses.byol.byol_loss", "0.3"),
    "losses.token_cosine": ("losses.distill", "0.3"),
    "losses.token_set.add_counts": ("methods.running_statistics.add_counts", "0.3"),
    "methods.crop_to_region": ("methods.region", "0.3"),
    "methods.crop_to_region.crop_to_region": ("methods.region.region", "0.3"),
    "methods.frozen_teacher": ("methods.distill", "0.3"),
    "methods.frozen_teacher.frozen_teacher": ("methods.distill.distill", "0.3"),
    "methods.gram_anchor": ("methods.gram", "0.3"),
    "methods.gram_anchor.gram_anchor": ("methods.gram.gram", "0.3"),
    "methods.resample": ("methods.maps_at_crops", "0.3"),
    "methods.superclip.token_set": ("methods.token_set.token_set", "0.3"),
    "training.ema.update_center": ("methods.running_statistics.update_center", "0.3"),
    "training.loop": ("training.train", "0.3"),
    "training.optimizer.build": ("training.optimizer.adamw", "0.3"),
    "training.running": ("methods.running_statistics", "0.3"),
    "training.loop.OutOfMemory": ("training.failures.OutOfMemory", "0.3"),
    "training.warm_start.adopt": ("training.adopted_config.adopt", "0.3"),
    "training.warm_start.run_of": ("training.adopted_config.run_of", "0.3"),
    "training.warm_start.config_of": ("training.adopted_config.config_of", "0.3"),
}


class FormerModules:
    """The last finder of `sys.meta_path`: imports a former module, whose names are those of the present one."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Returns the spec of a former module; None for other names."""
        loader: Any = FormerModules()  # without the base class `importlib.abc.Loader`, whose import takes milliseconds
        return ModuleSpec(name, loader) if name.startswith(PACKAGE) and name.removeprefix(PACKAGE) in RENAMED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves it to Python to create the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Warns the importer, and makes the module take its names from the present one."""
        _present(module.__name__)
        vars(module)["__getattr__"] = former_names(module.__name__)
        vars(module)["__dir__"] = lambda: names_of(module.__name__)


def former_names(module: str) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a module that had other names: `__getattr__ = former_names(__name__)`."""

    def attribute(name: str) -> Any:
        if name == "__all__" and module.removeprefix(PACKAGE) in RENAMED:
            return names_of(module)
        if f"{module}.{name}".removeprefix(PACKAGE) in RENAMED:
            there, _, name = _present(f"{module}.{name}").rpartition(".")
        elif module.removeprefix(PACKAGE) in RENAMED:
            there, _ = RENAMED[module.removeprefix(PACKAGE)]
        else:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(PACKAGE + there), name)

    return attribute


def names_of(module: str) -> list[str]:
    """Returns the public names of a former module: those of the present one, and its own former ones."""
    former = module.removeprefix(PACKAGE)
    present = importlib.import_module(PACKAGE + RENAMED[former][0])
    own = [name.removeprefix(f"{former}.") for name in RENAMED if name.startswith(f"{former}.")]
    return sorted({name for name in (*vars(present), *own) if not name.startswith("_")})


def _present(name: str) -> str:
    """Returns the present name, and warns the caller of the function that calls this one."""
    present, until = RENAMED[name.removeprefix(PACKAGE)]
    message = f"{name} is now {PACKAGE}{present}; version {until} no longer has the former name"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return present
