"""Models by name, from a hub on this machine: what is downloaded, kept, refused, and where names may stand."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from hub_server import REVISION, serving
from safetensors.numpy import load_file, save_file
from test_export import GELU_FIELDS, save_noise
from test_vocabularies import word_file
from tiny import SHORT_RUN

from detailclip_jax import config, evaluation, interop, pretraining
from detailclip_jax.data.tokenizer import VOCAB_SIZE
from detailclip_jax.evaluation import detail_report
from detailclip_jax.inference import model as inference
from detailclip_jax.interop import export_notes, formats, hub_configs, published
from detailclip_jax.interop.model_to_export import load as load_export
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.training import adopted_config, checkpoint, published_names
from detailclip_jax.training import train as training

errors = pytest.importorskip("huggingface_hub.errors")
NAME = "hf://someone/tiny-clip"
SHARDS = ("model", "safetensors"), ("pytorch_model", "bin")
# Fetches as one of two processes, and prints the workdir.
OF_TWO = """
import sys, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from detailclip_jax.interop import published
print(published.fetch(sys.argv[3]))
"""
# Calls `fetch` for each name, in one process, and prints what it returns, says or raises.
CALLS = """
import json, pathlib, sys
from detailclip_jax.interop import published
for name in json.loads(sys.argv[1]):
    said = []
    try:
        outcome = {"workdir": str(published.fetch(name, said.append))}
    except Exception as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    print("outcome " + json.dumps(outcome | {"said": said}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of a tiny model in open_clip's layout, as its repository has them."""
    workdir = save_noise(tmp_path_factory.mktemp("run"), "clip", **GELU_FIELDS)
    folder = tmp_path_factory.mktemp("open_clip") / "model"
    formats.named("open_clip").write(load_export(workdir, None, "student"), folder)
    return folder


@pytest.fixture
def hub(files):
    with serving() as hub:
        content = {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()}
        hub.add("someone/tiny-clip", content | {"train.py": b"raise SystemExit", "big.bin": b"x"})
        yield hub


def fetch(hub, home, *names, **variables):
    """The outcomes of `fetch` in a new process with a home of its own."""
    environ = {"HF_ENDPOINT": hub.address, "HF_HOME": f"{home}/hub", "XDG_CACHE_HOME": f"{home}/cache"}
    environ = os.environ | environ | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "2"} | variables
    command = [sys.executable, "-c", CALLS, json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line.partition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("outcome ")]


def test_a_name_becomes_a_workdir_once_and_is_then_read_without_the_hub(hub, files, tmp_path):
    (first,) = fetch(hub, tmp_path, NAME)
    assert "revision 0123456789ab, licence mit" in first["said"][0]
    workdir = first["workdir"]
    origin = json.loads(pathlib.Path(workdir, published.ORIGIN).read_text())
    assert (origin["name"], origin["repository"], origin["revision"]) == (NAME, "someone/tiny-clip", REVISION)
    assert origin["licence"] == "mit" and list(origin["sha256"]) == ["open_clip_model.safetensors"]
    downloaded = {path.rpartition("/")[2] for _, path in hub.requests if "/resolve/" in path}
    assert "open_clip_config.json" in downloaded and not downloaded & {"train.py", "big.bin", "README.md"}
    hub.requests.clear()
    (second,) = fetch(hub, tmp_path, NAME, HF_HUB_OFFLINE="1")
    assert second == {"workdir": workdir, "said": []} and not hub.requests
    model, (_, variables, stated) = inference.load(workdir), interop.load(files)
    np.testing.assert_array_equal(model.params["text"]["positions"], variables["params"]["text"]["positions"])
    assert model.config.preprocess == stated.preprocess


@pytest.mark.check
def test_each_failure_says_the_way_out(hub, tmp_path):
    content = hub.files["someone/tiny-clip"]
    hub.add("someone/gated", content)
    hub.gated.add("someone/gated")
    hub.add("someone/no-weights", {"README.md": b"", "config.json": b"{}"})
    hub.add("someone/two", {"a.safetensors": b"1", "b.safetensors": b"2"})
    names = "someone/gated", "someone/none", "someone/tiny-clip@old", "someone/no-weights", "someone/two"
    outcomes = fetch(hub, tmp_path, *(f"hf://{name}" for name in names), "hf:someone", "timm:vit.tag")
    said = [(outcome["error"], outcome["message"]) for outcome in outcomes]
    for (error, message), (expected, words) in zip(
        said,
        [
            ("PermissionError", "accept its terms at https://huggingface.co/someone/gated, and log in"),
            ("FileNotFoundError", "the hub has no model someone/none; if it is private, log in"),
            ("FileNotFoundError", "someone/tiny-clip@old has no such revision; give another"),
            ("FileNotFoundError", "no weights at its top; download one model yourself"),
            ("FileNotFoundError", "the weights of several models, a.safetensors, b.safetensors"),
            ("ValueError", "the forms are hf://OWNER/NAME, hf://OWNER/NAME@REVISION, open_clip:MODEL/TAG or timm"),
            ("FileNotFoundError", "the hub has no model timm/vit.tag"),
        ],
    ):
        assert error == expected and words in message, (error, message)
    assert not list((tmp_path / "cache").rglob("*origin.json"))
    (offline,) = fetch(hub, tmp_path, NAME, HF_HUB_OFFLINE="1")
    assert offline["error"] == "FileNotFoundError" and "HF_HUB_OFFLINE forbids" in offline["message"]
    hub.address = "http://127.0.0.1:9"
    (unreachable,) = fetch(hub, tmp_path, NAME)
    assert unreachable["error"] == "ConnectionError" and "HF_HUB_OFFLINE=1" in unreachable["message"]


def test_a_wrong_checksum_is_refused_and_a_repetition_downloads_again(hub, tmp_path):
    hub.wrong.add("open_clip_model.safetensors")
    (damaged,) = fetch(hub, tmp_path, NAME)
    assert damaged["error"] == "ValueError" and "it was removed, so repeat the command" in damaged["message"]
    hub.wrong.clear()
    (again,) = fetch(hub, tmp_path, NAME)
    assert "workdir" in again


def test_a_branch_that_moves_after_it_was_described_is_described_again(hub, tmp_path):
    hub.earlier, hub.main = REVISION, "f" * 40
    (outcome,) = fetch(hub, tmp_path, NAME)
    origin = json.loads(pathlib.Path(outcome["workdir"], published.ORIGIN).read_text())
    assert origin["revision"] == hub.main and [said.split()[2] for said in outcome["said"][:2]] == [
        f"{REVISION[:12]},",
        "ffffffffffff,",
    ]


def test_a_hub_that_sends_another_revision_than_it_describes_is_asked_twice(tmp_path, monkeypatch):
    about, said = mock.Mock(revision=REVISION, licence="mit", sizes={}, checksums={}), []
    monkeypatch.setattr(published, "describe", lambda _: about)
    monkeypatch.setattr(published, "files_of", lambda *_: [])
    monkeypatch.setattr("huggingface_hub.HfApi", mock.Mock())
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "another"))
    with pytest.raises(ConnectionError, match=f"describes revision {REVISION} and sends another; name one"):
        published.download("someone/tiny-clip", said.append)
    assert len(said) == 2


def test_an_interrupted_download_is_continued(hub, tmp_path):
    hub.cut["open_clip_model.safetensors"] = 1000
    (outcome,) = fetch(hub, tmp_path, NAME)  # the hub's library tries again by itself
    if "error" in outcome:
        (outcome,) = fetch(hub, tmp_path, NAME)
    assert "workdir" in outcome


def test_a_name_of_timm_is_its_image_encoder_also_beside_open_clip_s_file(hub, files, tmp_path):
    """And the name says quick GELU where the config of the repository, which has another name, does not."""
    export = load_export(save_noise(tmp_path / "run", "clip", **GELU_FIELDS), None, "student")
    formats.named("timm").write(export, tmp_path / "vit.safetensors")
    about = {
        "architecture": "vit_tiny_patch16_clip_224",
        "model_args": {"num_heads": 4},
        "pretrained_cfg": hub_configs.timm_preprocess(export.config),
    }
    content = hub.files["someone/tiny-clip"] | {"config.json": json.dumps(about).encode()}
    content["model.safetensors"] = (tmp_path / "vit.safetensors").read_bytes()
    hub.add("timm/vit_tiny_patch16_clip_224.noise", content)
    names = "timm:vit_tiny_patch16_clip_224.noise", "timm:vit_tiny_patch16_clip_quickgelu_224.noise"
    for outcome, activation in zip(fetch(hub, tmp_path, *names), ("gelu", "quick_gelu"), strict=True):
        _, variables, made = checkpoint.load(outcome["workdir"])
        assert "text" not in variables["params"] and made.model.image_style.activation == activation


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("hf://openai/clip-vit-base-patch16@57c2164", "openai/clip-vit-base-patch16@57c2164"),
        ("timm:vit_base_patch14_dinov2.lvd142m", "timm/vit_base_patch14_dinov2.lvd142m"),
        ("timm:vit_base_patch16_clip_quickgelu_224.openai", "timm/vit_base_patch16_clip_224.openai"),
        ("open_clip:ViT-B-16/laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    ],
)
def test_names_of_other_libraries_are_repositories_of_the_hub(name, repository):
    if name.startswith("open_clip"):
        pytest.importorskip("open_clip")
    assert published_names.is_remote(name) and published.repository_of(name) == repository


def test_an_unknown_tag_of_open_clip_names_the_known_ones():
    pytest.importorskip("open_clip")
    with pytest.raises(ValueError, match=r"no tag 'laion' of 'ViT-B-16'; its tags are openai, "):
        published.repository_of("open_clip:ViT-B-16/laion")


@pytest.mark.parametrize(
    ("raised", "seen", "words"),
    [
        (
            errors.LocalEntryNotFoundError("Got: ReadTimeout: timed out"),
            ConnectionError,
            "could not be downloaded: LocalEntryNotFoundError: Got: ReadTimeout.*; repeat the command",
        ),
        (TypeError("unexpected keyword argument 'files_metadata'"), TypeError, "unexpected keyword"),
    ],
)
def test_a_failed_request_is_a_connection_error_and_a_fault_is_not(monkeypatch, raised, seen, words):
    monkeypatch.setattr("huggingface_hub.HfApi", mock.Mock(side_effect=raised))
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    with pytest.raises(seen, match=words):
        published.download("someone/tiny-clip")


@pytest.mark.check
def test_without_the_network_an_earlier_download_is_converted_again(hub, tmp_path):
    """Also what a process that was killed, or an earlier version of the converter, has left."""
    (first,) = fetch(hub, tmp_path, NAME)
    workdir = pathlib.Path(first["workdir"])
    origin = json.loads((workdir / published.ORIGIN).read_text())
    (workdir / published.ORIGIN).write_text(json.dumps(origin | {"converter": 0}))
    partial = workdir.with_name(f".{workdir.name}.partial")
    (partial / "checkpoints/0").mkdir(parents=True)
    (again,) = fetch(hub, tmp_path, NAME, HF_HUB_OFFLINE="1")
    assert again["workdir"] == first["workdir"] and again["said"] and not partial.exists()
    assert json.loads((workdir / published.ORIGIN).read_text())["converter"] == published.CONVERTER


def test_a_model_of_an_earlier_converter_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    workdir = tmp_path / "model"
    (workdir / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(published.published_names, "workdir_of", lambda name: workdir)
    monkeypatch.setattr(published, "convert", mock.Mock(side_effect=ValueError("tensors that fit no layout")))
    with pytest.raises(ValueError, match="fit no layout"):
        published.fetch(tmp_path / "weights.safetensors")
    assert (workdir / "checkpoints").is_dir()


def test_one_family_of_shards_is_downloaded():
    names = [f"{stem}-0000{n}-of-00002.{end}" for stem, end in SHARDS for n in (1, 2)]
    sizes = dict.fromkeys([*names, "config.json", "model.safetensors.index.json"], 10)
    chosen = published.files_of(published.Repository("a/b", REVISION, "mit", sizes, {}))
    assert chosen == ["config.json", *names[:2], "model.safetensors.index.json"]


def test_a_vocabulary_other_than_clips_comes_with_the_model(tmp_path, monkeypatch):
    """Its file is in the workdir, so that the folder of the download need not stay."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = tower | {"image_size": 32, "patch_size": 8}
    texts = tower | {"vocab_size": 64, "max_position_embeddings": 16, "projection_size": 64}
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=texts, vision_config=vision))
    model.save_pretrained(tmp_path / "siglip")
    word_file(tmp_path / "siglip", padding="</s>")
    workdir = published.fetch(tmp_path / "siglip")
    shutil.rmtree(tmp_path / "siglip")
    assert np.isfinite(inference.load(workdir).encode_text(["a dog", "a cat"])).all()


def test_only_fields_of_checkpoints_name_models(files):
    made = config.default()
    made.data.path, made.logging.wandb = str(files), "timm: my project"
    published.fetch_all(made, say=pytest.fail)


@pytest.mark.slow
def test_a_run_records_the_revision_it_started_from_and_resumes_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    noise = save_noise(tmp_path / "noise", "clip", **GELU_FIELDS, **{"model.vocab_size": 49408})
    files = tmp_path / "open_clip"
    formats.named("open_clip").write(load_export(noise, None, "student"), files)
    origin = {"repository": "someone/tiny-clip", "revision": REVISION, "licence": "mit", "sha256": {}}
    monkeypatch.setattr(published, "download", lambda *_: (files, origin))
    made = config.default()
    made.update_from_flattened_dict({**SHORT_RUN, "method": "clip", "init": NAME, "total_steps": 1})
    assert training.train(pretraining.prepare(made, tmp_path / "run")) == 0
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(published, "download", pytest.fail)
    made.total_steps = 2
    assert training.train(pretraining.prepare(made, tmp_path / "run")) == 0
    recorded = {"name": NAME, **origin, "field": "init"}
    del recorded["sha256"]
    assert checkpoint.origins_of(tmp_path / "run", 1) == checkpoint.origins_of(tmp_path / "run", 2) == [recorded]
    export = load_export(tmp_path / "run")
    formats.named("timm").write(export, tmp_path / "vit.safetensors")
    assert json.loads((tmp_path / "vit.safetensors.json").read_text())["origins"] == [recorded]
    said = f"{NAME} (init), revision {REVISION}, licence mit"
    assert f"Its weights come from {said}." in export_notes.readme(export.config, export.origins)
    assert any(said in line for line in formats.summary("timm", export, tmp_path / "vit.safetensors", {}))


@pytest.mark.check
def test_processes_of_one_run_convert_once(files, tmp_path):
    """Two processes, which save checkpoints together, fetch the same folder at the same time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", OF_TWO, address]
    both = [subprocess.Popen([*command, n, str(files)], env=environ, stdout=subprocess.PIPE) for n in "01"]
    printed = [each.communicate(timeout=300)[0].decode().splitlines()[-1] for each in both]
    assert [each.returncode for each in both] == [0, 0] and printed[0] == printed[1]
    assert inference.load(printed[0]).step == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [(-9, "the conversion was ended by signal 9, usually for lack of memory$"), (-15, "ended by signal 15$"), (3, "3")],
)
def test_a_process_that_ended_without_a_message_is_said(tmp_path, monkeypatch, code, words):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), code, "", ""))
    with pytest.raises(RunError, match=words):
        published.fetch(NAME)


def test_the_whole_message_of_the_process_that_converts_is_kept(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("jax.process_count", lambda: 2)
    shutil.copytree(files, tmp_path / "model")
    file = tmp_path / "model/open_clip_model.safetensors"
    save_file({f"{key}x" if key == "logit_scale" else key: x for key, x in load_file(file).items()}, file)
    with pytest.raises(RunError, match=r"(?s)does not fit.*1 missing: logit_scale.*1 unknown: logit_scalex"):
        published.fetch(tmp_path / "model")


def test_a_file_of_weights_is_converted_once_and_again_after_a_change(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    workdir = published.fetch(files)
    assert published.fetch(files) == workdir and published.fetch(workdir) == workdir
    assert inference.load(files).step == 0  # the folder itself names the model
    assert adopted_config.config_of(str(files)).method == "clip"
    made = config.default()
    made.init = str(files)
    published.fetch_all(made)
    assert made.init == str(files)  # the config keeps the name
    os.utime(files / "open_clip_model.safetensors", ns=(0, 1))
    assert published_names.workdir_of(files) != workdir


def test_a_file_of_weights_is_converted_again_after_a_change_of_the_config_beside_it(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = files / "open_clip_model.safetensors"
    before = published_names.workdir_of(weights)
    os.utime(files / "open_clip_config.json", ns=(0, 2))
    assert published_names.workdir_of(weights) != before


def test_an_import_of_two_text_sides_reads_long_captions_with_the_long_one(tmp_path):
    """Named as FG-CLIP's tensors; the short side is the import's own, the long one lies beside it."""
    workdir = save_noise(tmp_path / "run", "clip", **GELU_FIELDS, **{"model.vocab_size": VOCAB_SIZE})
    formats.named("huggingface").write(load_export(workdir, None, "student"), tmp_path / "model")
    file, rng = tmp_path / "model/model.safetensors", np.random.default_rng(0)
    weights, table = load_file(file), "text_model.embeddings.position_embedding"
    for name in ("ori", "res"):
        weights[f"{table}_{name}.weight"] = rng.standard_normal((30, weights[f"{table}.weight"].shape[1]), np.float32)
    weights["text_filip_projection.weight"] = weights["text_projection.weight"][::-1]
    save_file({name: np.array(array, order="C") for name, array in weights.items()}, file)
    published.convert(tmp_path / "model", tmp_path / "fgclip", "fgclip")
    published.convert(tmp_path / "model", tmp_path / "alone", "fgclip", "fgclip_long")

    subject, alone = (evaluation.from_checkpoint(tmp_path / name) for name in ("fgclip", "alone"))
    sets = evaluation.Sets(tmp_path, subject.transform.size, num_scenes=12)
    tasks = evaluation.parse("retrieval:stickers,stickers_long", sets)
    both, long = evaluation.run_tasks(subject, tasks, sets), evaluation.run_tasks(alone, tasks, sets)
    assert not both.failed and alone.long_texts is None
    for record, other in zip(both.records, long.records, strict=True):
        is_long = record["dataset"] == "stickers_long"
        assert record["protocol"].endswith("long text side of 30 tokens") == is_long
        assert not is_long or record["value"] == other["value"]
    assert [r["truncated"] for r in both.records] != [r["truncated"] for r in long.records]
    page = detail_report.markdown(both)
    assert "Retrieval of long captions uses the long text side (30 tokens), all else the other (12 tokens)." in page
    assert "the other (12 tokens)" not in detail_report.markdown(long)
