"""The config that a run adopts from the checkpoint that it starts from: `--config.init=DIR`.

The loaded networks keep the sizes and kinds of layers of the checkpoint, and images are normalised as there.  With
`--config.init_text=DIR` the text encoder, its sizes and its tokenizer are those of another checkpoint.  `warm_start`
loads the weights.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import default, run_config, sizes
from detailclip_jax.config.run_config import is_dense
from detailclip_jax.config.settings import split_list
from detailclip_jax.data import vocabularies
from detailclip_jax.methods import Method
from detailclip_jax.models import lora, positions
from detailclip_jax.models.networks import NETWORKS
from detailclip_jax.models.registry import Network
from detailclip_jax.training import dense_encoder
from detailclip_jax.training.published_names import workdir_of
from detailclip_jax.training.workdirs import FOLDER, has_config, is_run, no_run

OF_IMAGES, OF_TEXT, OF_DECODER = (NETWORKS[name].adopted for name in ("image", "text", "decoder"))
KEEP = "keep"  # of init_text_positions: the context of the checkpoint
CONTEXT = "context_length"
OF_PAIR = ("image_is_embedding",)
OF_ITS_WIDTH = ("decoder", "pixel_head")  # networks of the decoder's width
PROJECTIONS = ("image_projection", "text_projection")
OF_LOGITS = ("logit_scale", "logit_bias")
OF_TEXT_SIZE = "model.custom.text_"
POSITIONS = "interpolation"


def adopt(config: ConfigDict, given: Iterable[str] = (), workdir: str | Path | None = None) -> ConfigDict:
    """Returns the config with the fields that `config.init` determines.

    These are the sizes and kinds of the loaded networks, the preprocessing, the tokenizer, and the learning-rate
    factors of the loaded networks.  The preprocessing and the sizes of crops that the user has set keep their values;
    `given` has the dotted names of these fields, e.g. "preprocess.filter".  The interpolation of positions is the
    checkpoint's, unless the user names one, or the config another one than the default.  There are at least as many
    class tokens as in the checkpoint, unless the user has set "model.class_tokens".  The file of a tokenizer gets its
    absolute path and its digest, and `distill.record` the fields of a frozen teacher; apart from that the config is
    returned unchanged without `init`.  If a run from the same `init` and teacher goes on in `workdir`, the fields are
    those of its own config, and `init` and the teacher need not exist any more.  A run in `workdir` also keeps its
    `model.remat` and `model.scan` where the config leaves them open.

    Raises FileNotFoundError if there is no run at `init` or no such file, and ValueError if the config requires an
    `init` and has none, if the file does not fit, or if a given field of `model` contradicts a loaded network.
    """
    given = list(given)
    config = with_terms(run_config.as_in_run(config, workdir, given), workdir)
    config = _with_stored(config, workdir)
    if not config.init:
        _check_without_init(config)
        _check_locked(config, [])
        return _with_tokenizer(config)
    (source, brought), adopted = _origin(config, workdir), ConfigDict(config.to_dict())
    set_by_user = set(given)
    fields = [*OF_IMAGES, *(OF_PAIR if "text" in brought else ())]
    known = NETWORKS | dict(methods.build(source).networks)
    fields += [field for name in sorted({*brought} - {"image", "text", "decoder"}) for field in known[name].adopted]
    texts, brought = _text_origin(config, source, brought, workdir)
    sizes_stay = "text" not in brought and config.model.size == sizes.CUSTOM
    if texts is source and not sizes_stay:
        _take(adopted, source, fields, set_by_user)
    else:
        _take(adopted, source, fields, {name for name in set_by_user if not name.startswith(OF_TEXT_SIZE)})
        _take_text_sizes(adopted, config, config if sizes_stay else texts, set_by_user)
    if "text" in brought:
        _adopt_texts(adopted, texts, set_by_user)
    adopted = _with_tokenizer(adopted)
    if "model.class_tokens" not in set_by_user:
        adopted.model.class_tokens = max(config.model.class_tokens, source.model.class_tokens)
    if f"model.{POSITIONS}" not in set_by_user and config.model[POSITIONS] == default().model[POSITIONS]:
        adopted.model[POSITIONS] = source.model[POSITIONS]
    adopted.preprocess = ConfigDict(source.preprocess.to_dict())
    for name in adopted.preprocess:
        if f"preprocess.{name}" in set_by_user:
            adopted.preprocess[name] = config.preprocess[name]
    _fit_crops(adopted, config, set_by_user)
    method = methods.build(adopted)
    if config.init_text and "text" not in method.networks:
        raise ValueError(
            f"config.init_text {config.init_text!r}: method {method.name} has no text encoder; leave it out"
        )
    if "decoder" in brought and methods.takes_decoder(method, source.model):
        _take(adopted, source, OF_DECODER, set_by_user)
    loaded = loaded_networks(config, method, source, brought)
    _check_locked(config, loaded)
    rates = adopted.optimizer.part_rates.to_dict()
    adopted.optimizer.part_rates = ConfigDict(dict.fromkeys(loaded, adopted.optimizer.loaded_rate) | rates)
    return adopted


def with_terms(config: ConfigDict, workdir: str | Path | None = None, stand_ins: bool = False) -> ConfigDict:
    """Returns the config with the fields that terms take from other workdirs, see `methods.method.Term.adopt`.

    A run that goes on in `workdir` has them in its own config. With `stand_ins` a term that has no workdir gets the
    fields of the config itself: enough to compile and time a step.
    """
    running = run_of(config, workdir)
    for term in methods.TERMS.values():
        made = term.stand_in(config) if stand_ins and term.stand_in else None
        config = made or (term.adopt(config, running, config_of) if term.adopt else config)
    return config


def config_of(workdir: str, field: str = "config.init") -> ConfigDict:
    """Returns the config of a run or an imported checkpoint; for a run of a dense task, the config of its encoder.

    Raises FileNotFoundError if there is none; `field` names the workdir.
    """
    folder = workdir_of(workdir)
    file = folder / "config.json"
    if not file.is_file() or not any((folder / FOLDER).glob("*")):
        raise FileNotFoundError(
            f"{field} {workdir!r} is not a workdir with a config.json and a checkpoint: {no_run(workdir)}"
        )
    config = run_config.read(file)
    if is_dense(config):
        return dense_encoder.config_alone(config)
    vocabularies.find_file(config, file.parent)
    return config


def run_of(config: ConfigDict, workdir: str | Path | None) -> ConfigDict | None:
    """Returns the config of the run in `workdir` if it has a checkpoint, and the method and origins of `config`."""
    if workdir is None or not is_run(Path(workdir)):
        return None
    run = run_config.read(Path(workdir) / "config.json")
    same = all(
        run.get(name) == config.get(name) for name in ("method", "init", "init_text")
    )  # dense tasks lack the last
    return run if same else None


def loaded_networks(config: ConfigDict, method: Method, source: ConfigDict, brought: Collection[str]) -> list[str]:
    """Returns the networks of a method that are loaded: of those that are `brought` from a checkpoint `source`.

    A decoder of another width than the encoder serves the reconstruction of pixels, but not a patch term.  Scale and
    bias of the logits belong to the projections: with a fresh one they are fresh.  `Network` says of every network what
    else keeps it fresh.
    """
    theirs = methods.build(source).networks
    before, now = run_config.flatten(source), run_config.flatten(config)

    def fits(name: str, network: Network) -> bool:
        same = all(before.get(field) == now.get(field) for field in network.reload_if_equal)
        return same and not network.loaded_by_term and (name not in theirs or theirs[name].kind == network.kind)

    other = {name for name, network in method.networks.items() if not fits(name, network)}
    if any(name in method.networks and (name in other or name not in brought) for name in PROJECTIONS):
        other |= {*OF_LOGITS}
    if not methods.takes_decoder(method, source.model):
        other |= {*OF_ITS_WIDTH}
    return [name for name in method.networks if name in brought and name not in other]


def _origin(config: ConfigDict, workdir: str | Path | None) -> tuple[ConfigDict, Collection[str]]:
    """Returns the config whose fields are adopted, and the networks that come with it.

    It is that of `config.init`, or of the run from this `init` that goes on in `workdir`.  With such a run come the
    networks that it has loaded; fields of networks that its method lacks stay as they are, too.
    """
    run = run_of(config, workdir)
    if run is None:
        source = config_of(config.init)
        return source, methods.build(source).networks
    lacking = {"text", "prototype_head", "decoder"} - {*methods.build(run).networks}
    return run, {*run.optimizer.part_rates} | lacking


def _text_origin(
    config: ConfigDict, source: ConfigDict, brought: Collection[str], workdir: str | Path | None
) -> tuple[ConfigDict, Collection[str]]:
    """Returns the config of the text encoder that is loaded, and the networks that come with both checkpoints.

    It is `source` without `init_text`, and in a run that goes on.  A projection of texts belongs to its text encoder.
    """
    if not config.init_text or run_of(config, workdir) is not None:
        return source, brought
    texts = config_of(config.init_text, "config.init_text")
    if "text" not in methods.build(texts).networks:
        raise ValueError(f"config.init_text {config.init_text!r} has no text encoder: its method is {texts.method}")
    return texts, {*brought, "text"} - {"text_projection"}


def _adopt_texts(config: ConfigDict, texts: ConfigDict, set_by_user: Collection[str]) -> None:
    """Sets the sizes, kinds and tokenizer of the text encoder to those of the checkpoint that it comes from."""
    stretched = config.init_text_positions != KEEP
    if stretched:
        positions.check_stretch(texts.model[CONTEXT], config.model[CONTEXT], config.init_text_positions)
    fields = [name for name in OF_TEXT if name != CONTEXT or not stretched]
    _take(config, texts, fields, set_by_user, "init_text" if config.init_text else "init")
    config.data.tokenizer_digest = texts.data.tokenizer_digest
    if "data.tokenizer" not in set_by_user:
        config.data.tokenizer = texts.data.tokenizer


def _with_stored(config: ConfigDict, workdir: str | Path | None) -> ConfigDict:
    """Returns the config with the `model.remat` and `model.scan` of the run in `workdir` where they are open."""
    model = config.model
    if workdir is None or not has_config(Path(workdir)) or (model.remat != "auto" and model.scan is not None):
        return config
    run, config = run_config.read(Path(workdir) / "config.json"), ConfigDict(config.to_dict())
    config.model.remat = run.model.remat if model.remat == "auto" else model.remat
    config.model.scan = run.model.scan if model.scan is None else model.scan
    return config


def _take(
    config: ConfigDict, source: ConfigDict, names: Collection[str], set_by_user: Collection[str], origin: str = "init"
) -> None:
    """Sets these fields of `config.model` to those of `source`; ValueError if the user has set one to another value.

    `origin` is the field that names the checkpoint.
    """
    _check_set_fields(config, source, names, set_by_user, origin)
    for name in names:
        config.model[name] = source.model[name]


def _check_set_fields(
    config: ConfigDict, source: ConfigDict, names: Iterable[str], set_by_user: Collection[str], origin: str
) -> None:
    """Raises ValueError if the user has set one of these fields of `config.model` to another value than `source`."""
    for name in names:
        ours, theirs = (run_config.flatten({name: model[name]}, "model.") for model in (config.model, source.model))
        for field in sorted(ours.keys() | theirs.keys()):
            is_set = any(f"{field}.".startswith(f"{entry}.") for entry in set_by_user)
            if is_set and ours.get(field) != theirs.get(field):
                stretch = "stretch its positions with --config.init_text_positions=linear or longclip, "
                raise ValueError(
                    f"{field} {ours.get(field)!r}: config.{origin} {config[origin]!r} has {field} "
                    f"{theirs.get(field)!r}, which a loaded network keeps; {stretch * (name == CONTEXT)}leave that "
                    f"flag out, or train from scratch without --config.{origin}"
                )


def _take_text_sizes(adopted: ConfigDict, config: ConfigDict, texts: ConfigDict, set_by_user: Collection[str]) -> None:
    """Sets the sizes of the text encoder to those of `texts`: the user's, or those of `init_text`.

    ValueError if the user has set one in `config` to another value.
    """
    stated = sizes.size_of(texts.model)._asdict()
    text = {name: size for name, size in stated.items() if name.startswith("text_")}
    adopted.model.custom = ConfigDict(sizes.size_of(adopted.model)._replace(**text)._asdict())
    adopted.model.size = sizes.CUSTOM
    of_text = {name for name in set_by_user if name.startswith(OF_TEXT_SIZE)}
    _check_set_fields(config, adopted, ["custom"], of_text, "init_text")


def _with_tokenizer(config: ConfigDict) -> ConfigDict:
    """Returns the config with the place and digest of the tokenizer's file, see `vocabularies.record`."""
    if config.data.tokenizer == vocabularies.CLIP and not config.data.tokenizer_digest:
        return config
    config = ConfigDict(config.to_dict())
    vocabularies.record(config, config.data.keep_eot)
    return config


def _check_without_init(config: ConfigDict) -> None:
    """Raises ValueError if the config continues a checkpoint, or has a field that only loaded networks read."""
    if config.init_text:
        raise ValueError("init_text goes with init: give --config.init=WORKDIR of an image encoder, or leave it out")
    if config.init_text_positions != KEEP:
        raise ValueError(
            f"init_text_positions {config.init_text_positions!r} stretches the positions of a checkpoint: give "
            "--config.init=WORKDIR, or leave it out"
        )
    if config.init_required:  # else frozen layers would stay random
        raise ValueError("this config continues a checkpoint: give --config.init=WORKDIR")
    for name in ("loaded_rate", *(() if config.optimizer.part_rates else ("layer_decay",))):
        if (rate := config.optimizer[name]) != 1:
            raise ValueError(
                f"optimizer.{name} {rate} is for networks that are loaded: give --config.init=WORKDIR, or set it to 1"
            )


def _check_locked(config: ConfigDict, loaded: Collection[str]) -> None:
    """Raises ValueError if a network with adapters or a frozen encoder stays random, or a frozen one has drop path."""
    for name in lora.parse(config.optimizer.lora):
        if name not in loaded:
            raise ValueError(
                f"optimizer.lora {name!r} adapts a network that is not loaded (loaded: {', '.join(loaded) or 'none'}); "
                "give --config.init=WORKDIR of a checkpoint with it, or leave it out"
            )
    for name in split_list(config.optimizer.frozen):
        encoder = name.partition(":")[0]
        if encoder in ("image", "text") and encoder not in loaded:
            raise ValueError(
                f"optimizer.frozen {name!r} locks an encoder that is not loaded: give --config.init=WORKDIR of a "
                "checkpoint with it, or leave it out"
            )
        if encoder == "image" and config.model.drop_path:
            raise ValueError(f"model.drop_path {config.model.drop_path} would disturb a frozen encoder; set it to 0")


def _fit_crops(config: ConfigDict, before: ConfigDict, set_by_user: Collection[str]) -> None:
    """Resizes the crops in proportion to the image size, in whole patches, if the image or patch size has changed.

    A size or mask_grid that the user has set stays.
    """
    new, old = ((c.model.image_size, sizes.size_of(c.model).patch_size) for c in (config, before))
    if new == old:
        return
    for name, crop in config.views.crops.items():
        if f"views.crops.{name}.size" not in set_by_user:
            crop.size = max(round(crop.size * new[0] / old[0] / new[1]), 1) * new[1]
        if crop.get("mask_grid") and f"views.crops.{name}.mask_grid" not in set_by_user:
            crop.mask_grid = crop.size // new[1]
