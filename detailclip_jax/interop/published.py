"""Models by name: `fetch` downloads what another library published, converts it once and keeps the workdir.

    fetch("hf://openai/clip-vit-base-patch16")      # ~/.cache/detailclip_jax/models/hf--openai--clip-vit-base-patch16
    fetch("ViT-B-16.pt")                            # a file or folder of weights on this disk
    fetch("runs/stickers")                          # a workdir is returned as it is

`training.published_names` lists the forms of names.  Files are downloaded with huggingface_hub, whose variables apply:
HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.  Only weights, configs and vocabularies are downloaded, and no code of a
repository is run.  `origin.json` in the workdir has the repository and its revision, and its licence and checksums
unless the files of an earlier download were taken.  A workdir that an earlier CONVERTER has written is written again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from detailclip_jax.config.run_config import flatten
from detailclip_jax.data import vocabularies
from detailclip_jax.data.tokenizer import VOCAB_SIZE
from detailclip_jax.data.vocabularies import pieces_of
from detailclip_jax.inference import readout_choice
from detailclip_jax.interop import own_safetensors, state_dicts
from detailclip_jax.interop.hub_vocabulary import TOKENIZER_CONFIG
from detailclip_jax.runtime import extras, weight_files
from detailclip_jax.runtime.errors import RunError, first_line
from detailclip_jax.runtime.files import nothing_left, read_json, replace_text
from detailclip_jax.runtime.locks import alone
from detailclip_jax.training import checkpoint, published_names
from detailclip_jax.training.published_names import NAMING, ORIGIN
from detailclip_jax.training.workdirs import is_run
from detailclip_jax.types import Params

CONVERTER = 3  # one more after a change of the import that changes features, or adds a text side
# Fetches a model; standard error has the whole message of an error.
IN_ONE_PROCESS = """
import sys
from detailclip_jax.interop import published
from detailclip_jax.runtime import errors
sys.exit(errors.run(lambda: published.fetch(sys.argv[1]) and 0))
"""
QUICK_GELU = "_clip_quickgelu_"  # in timm's names of models, whose repositories have not this part
SIDECARS = (".json", ".txt", ".model")  # configs and vocabularies
MAX_SIDECAR = vocabularies.MAX_BYTES
PAGE = "https://huggingface.co"
NO_REVISION = "give another after @, or leave it out for the main branch"


class Repository(NamedTuple):
    """A repository of the hub at one revision.  By file name: sizes in bytes, and the SHA-256 of large files."""

    name: str
    revision: str
    licence: str
    sizes: Mapping[str, int]
    checksums: Mapping[str, str]


def fetch(name: str | Path, say: Callable[[str], Any] = print) -> Path:
    """Returns the workdir of a model; one that is not a workdir yet is downloaded and converted first.

    `say` prints what is downloaded and where the workdir is. In a run of several processes, one of those that share a
    disk converts, in a process of its own, and the others wait for it.

    Raises FileNotFoundError for an unknown repository or revision and for one without weights, PermissionError for a
    gated one, ConnectionError if the hub cannot be reached, ModuleNotFoundError if huggingface_hub is missing, and
    ValueError for damaged files and for tensors that fit no layout, see `interop.load`.  In a run of several processes
    each of these is a RunError with the message of the process that converts, or with the signal that ended it.
    """
    if not published_names.is_remote(str(name)):
        name = Path(name).expanduser()
    workdir = published_names.workdir_of(name)
    if workdir == Path(name) or is_converted(workdir):
        return workdir
    if jax.process_count() > 1:  # a checkpoint is saved by all processes together, or by one that is alone
        environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", IN_ONE_PROCESS, str(name)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode < 0:
            memory = ", usually for lack of memory" if -done.returncode == signal.SIGKILL else ""
            raise RunError(f"{name}: the conversion was ended by signal {-done.returncode}{memory}")
        if done.returncode:
            reason = done.stderr.strip() or f"exit code {done.returncode}, without a message"
            raise RunError(f"{name} could not be converted: {reason}")
        return workdir
    partial = workdir.with_name(f".{workdir.name}.partial")
    with alone(workdir.with_name(f".{workdir.name}.lock"), wait=True):
        if is_converted(workdir):  # by the process that held the lock
            return workdir
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        if published_names.is_remote(str(name)):
            source, origin = download(str(name), say)
        else:
            source, origin = Path(name), {"file": str(Path(name).absolute())}
        convert(source, partial, str(name))
        write_origin(partial, str(name), origin)
        shutil.rmtree(workdir, ignore_errors=True)  # of an earlier converter; it stays until the new one is complete
        partial.rename(workdir)
    say(f"{name}: converted to {workdir}")
    return workdir


def write_origin(workdir: Path, name: str, origin: Mapping[str, Any]) -> None:
    """Writes what `download` says of a model, which `checkpoint.origins_of` reads."""
    about = {"name": name, "converter": CONVERTER, **origin}
    replace_text(workdir / ORIGIN, json.dumps(about, indent=1) + "\n")


def is_converted(workdir: Path) -> bool:
    """Whether this version of the converter has written the workdir."""
    file = workdir / ORIGIN
    return file.is_file() and read_json(file).get("converter") == CONVERTER


def fetch_all(config: ConfigDict, workdir: str | Path | None = None, say: Callable[[str], Any] = print) -> None:
    """Fetches the models that fields of the config name (NAMING); the config keeps the names.  Raises as `fetch`.

    A run that goes on in `workdir` needs none of them.
    """
    if workdir is not None and is_run(Path(workdir)):
        return
    for field, value in flatten(config.to_dict()).items():
        if field in NAMING and value:
            fetch(value, say)


def convert(
    source: Path, workdir: Path, name: str, layout: str | None = None, **options: Any
) -> tuple[dict[str, Params], ConfigDict]:
    """Converts weights to a workdir with one checkpoint of step 0; returns variables and config.

    `name` is noted in the checkpoint.  `layout` and `options` are those of `interop.load`, and so are the errors.  The
    workdir has a copy of the file of a vocabulary other than CLIP's, which without `tokenizer` is the one in the
    folder.  If the model has a long text side besides, the workdir LONG_TEXTS in it has the model with that side.
    """
    if published_names.TIMM.fullmatch(name) and QUICK_GELU in name:
        options["activation"] = options.get("activation") or "quick_gelu"
    vocabulary = options.pop("tokenizer", None) or vocabulary_in(source)
    _, variables, config, long_texts = state_dicts.load_side(source, layout, tokenizer=vocabulary, **options)
    choice = own_safetensors.choice_of(source) if own_safetensors.is_own_format(source) else None
    with nothing_left(workdir):
        vocabularies.record(config)
        checkpoint.save_weights(workdir, variables, config, f"imported from {name}")
        if vocabulary:
            beside = Path(vocabulary).with_name(TOKENIZER_CONFIG)  # names the token that fills a text
            for file in (Path(vocabulary), *([beside] if beside.is_file() else [])):
                shutil.copyfile(file, workdir / file.name)
        if choice:
            for weights in ("student", "ema"):  # the teacher is a copy
                readout_choice.write(workdir, 0, weights, choice)
        if long_texts:
            convert(source, workdir / published_names.LONG_TEXTS, name, long_texts, tokenizer=vocabulary, **options)
    return variables, config


def vocabulary_in(folder: Path) -> Path | None:
    """Returns the file of a vocabulary in a folder of weights; None for CLIP's, and without one."""
    if not folder.is_dir():
        return None
    files = [file for file in (folder / "tokenizer.json", *sorted(folder.glob("*.model"))) if file.is_file()]
    return files[0] if files and pieces_of(str(files[0])).size != VOCAB_SIZE else None


def repository_of(name: str) -> str:
    """Returns the repository, with @REVISION if one is named, of a name of the hub, open_clip or timm.

    repository_of("timm:vit_base_patch14_dinov2.lvd142m") == "timm/vit_base_patch14_dinov2.lvd142m"

    The hub has timm's models with quick GELU under the name without it.

    Raises ValueError for a model or tag that open_clip lacks or does not keep on the hub, and ModuleNotFoundError if
    open_clip is missing, which alone knows where its weights are.
    """
    if match := published_names.TIMM.fullmatch(name):
        return f"timm/{match['model'].replace(QUICK_GELU, '_clip_')}"
    if match := published_names.OPEN_CLIP.fullmatch(name):
        needs = f"open_clip_torch knows where {name} is"
        pretrained = extras.load("open_clip.pretrained", needs, package="open_clip_torch")
        model, tag = match["model"].replace("/", "-"), match["tag"]
        if tag not in (tags := pretrained.list_pretrained_tags_by_model(model)):
            known = ", ".join(tags) or "none; its models are listed by open_clip.list_pretrained()"
            raise ValueError(f"{name}: open_clip has no tag {tag!r} of {model!r}; its tags are {known}")
        entry = pretrained.get_pretrained_cfg(model, tag)
        if not entry.get("hf_hub"):
            raise ValueError(f"{name} is not on the hub; download {entry.get('url')} and give the file")
        return entry["hf_hub"].strip("/")
    return name.removeprefix("hf://")


def download(model: str, say: Callable[[str], Any] = print, again: bool = False) -> tuple[Path, dict[str, Any]]:
    """Downloads weights, configs and vocabularies of a model; returns their folder or file, and their origin.

    `model` is a name as in `published_names`, or OWNER/NAME or OWNER/NAME@REVISION.  A download that was interrupted
    continues.  The SHA-256 of the weights is compared with the hub's.  With HF_HUB_OFFLINE the files of an earlier
    download of the same name are taken.  `again`: the branch has moved during a first attempt.  Raises as `fetch`.
    """
    repository = repository_of(model)
    # The repository of a model of timm may also have open_clip's file, with its text encoder.
    known = weight_files.OF_HUB if published_names.TIMM.fullmatch(model) else weight_files.NAMES
    hub = extras.load("huggingface_hub", f"downloading {repository} needs huggingface_hub", "hub")
    name, _, revision = repository.partition("@")
    with _hub_errors(repository):
        if hub.is_offline_mode():
            # Without patterns it would ask for all files of the repository.
            folder = Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=[]))
            return _weights(folder, known), {"repository": name, "revision": folder.name}
        information = hub.HfApi().model_info(name, revision=revision or None, files_metadata=True)
    about = describe(information)
    files = files_of(about, known)
    size = sum(about.sizes[file] for file in files) / 1e6
    say(f"{name}: revision {about.revision[:12]}, licence {about.licence}, {size:,.1f} MB")
    with _hub_errors(repository):
        # By the name of the branch, so that the cache finds it by this name without the network.
        folder = Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=files))
    if folder.name != about.revision and not again:
        return download(model, say, again=True)  # the branch was moved after it was described
    if folder.name != about.revision:
        raise ConnectionError(
            f"{name}: the hub describes revision {about.revision} and sends {folder.name}; name one: hf://{name}@REVISION"
        )
    checksums = {file: about.checksums[file] for file in files if file in about.checksums}
    for file, expected in checksums.items():
        check(folder / file, expected)
    origin = {"repository": name, "revision": about.revision, "licence": about.licence, "sha256": checksums}
    return _weights(folder, known), origin


def describe(info: Any) -> Repository:
    """Returns what is read of huggingface_hub's `ModelInfo` with metadata of files."""
    licence = (info.card_data or {}).get("license") or "not stated"
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    checksums = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
    return Repository(info.id, info.sha, str(licence), sizes, checksums)


def files_of(repository: Repository, known: Sequence[str] = weight_files.NAMES) -> list[str]:
    """Returns the files of a repository that are downloaded: one model's weights, configs and vocabularies.

    Of several files of weights that are `known`, the first is taken.
    Raises FileNotFoundError that lists the files if there are no weights, or weights of several models.
    """
    top = sorted(name for name in repository.sizes if "/" not in name)
    weights = [name for name in known if name in top][:1]
    shards = [name for name in top if weight_files.SHARD.search(name)]
    weights = weights or [name for name in shards if name.endswith(".safetensors")] or shards
    weights = weights or [name for name in top if name.endswith(weight_files.SUFFIXES)]
    is_one = len(weights) == 1 or weight_files.is_pair(weights) or (weights and weight_files.SHARD.search(weights[0]))
    if not is_one:
        what = f"the weights of several models, {', '.join(weights)}" if weights else "no weights at its top"
        raise FileNotFoundError(
            f"{repository.name} has {what}; download one model yourself and give its file. The files are "
            f"{', '.join(list(repository.sizes)[:20])}"
        )
    small = [name for name in top if name.endswith(SIDECARS) and repository.sizes[name] <= MAX_SIDECAR]
    return sorted({*weights, *small})


def check(file: Path, expected: str) -> None:
    """Raises ValueError, and removes the file, if its SHA-256 is another than expected."""
    with file.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != expected:
        file.resolve().unlink()  # the link points to the content
        file.unlink(missing_ok=True)
        raise ValueError(
            f"{file.name} was damaged in the download: its SHA-256 is {actual}, the hub's {expected}; it was removed, "
            "so repeat the command"
        )


def _weights(folder: Path, known: Sequence[str]) -> Path:
    """The folder of a known kind of model, else its only file of weights; timm's file beside open_clip's."""
    there = [file for file in map(folder.joinpath, known) if file.is_file()]
    if there and known != weight_files.NAMES:
        return there[0]
    if weight_files.is_model(folder):
        return folder
    files = [file for file in folder.iterdir() if file.suffix in weight_files.SUFFIXES]
    return files[0] if len(files) == 1 else folder


@contextlib.contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Context in which errors of huggingface_hub become those that `fetch` lists."""
    from huggingface_hub import errors, is_offline_mode  # installed, as `hub` is

    page = f"{PAGE}/{repository.partition('@')[0]}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{repository} is gated: accept its terms at {page}, and log in with `hf auth login` or HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repository} has no such revision; {NO_REVISION}") from error
    except errors.RepositoryNotFoundError as error:
        private = "if it is private, log in with `hf auth login` or HF_TOKEN"
        raise FileNotFoundError(f"the hub has no model {repository}; {private}") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{repository!r} is not the name of a repository: {error}") from error
    except (AttributeError, TypeError):
        raise  # of this program, or of a version of huggingface_hub with another interface
    except Exception as error:  # also of the HTTP library, which is another one in other versions of huggingface_hub
        is_local = isinstance(error, errors.LocalEntryNotFoundError)  # also raised if a request failed
        if is_local and is_offline_mode():
            raise FileNotFoundError(
                f"{repository} was not downloaded before, and HF_HUB_OFFLINE forbids to download it now; files are "
                "looked for in HF_HOME, by default ~/.cache/huggingface"
            ) from error
        if isinstance(error, OSError) and not isinstance(error, errors.HfHubHTTPError) and not is_local:
            raise  # of the disk
        raise ConnectionError(
            f"{repository} could not be downloaded: {first_line(error)}; repeat the command to continue, or set "
            "HF_HUB_OFFLINE=1 to take files that were downloaded before"
        ) from error
