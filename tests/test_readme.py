"""README and docs: Python runs as printed, commands parse, paths and links exist."""

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
from contextlib import chdir, closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_detection_run
import test_segmentation_step
from PIL import Image
from tiny import noise_state, on_one_device

import detailclip_jax
from detailclip_jax import __main__ as door
from detailclip_jax import (
    benchmark,
    compare,
    demo,
    doctor,
    embed,
    evaluate,
    export,
    import_torch,
    look,
    methods,
    prepare,
    transfer,
    visualize,
)
from detailclip_jax import main as train
from detailclip_jax.config import fields, run_config
from detailclip_jax.dense import class_names
from detailclip_jax.training import checkpoint, experiment
from detailclip_jax.training.checkpoint import Checkpoints
from detailclip_jax.training.mesh import make_mesh

ROOT = Path(__file__).parents[1]
STICKERS = ROOT / "tests/configs/stickers.py"
PAGES = {file.relative_to(ROOT).as_posix(): file.read_text() for file in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
RULES = {"CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()}
BLOCKS = {
    f"{name}, block {number}": block
    for name, text in PAGES.items()
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE), 1)
}
SILENT = "docs/segmentation.md"  # its Python draws
RUNS = {
    "ade20k_upernet": ("segmentation", "clip_ade", "detailclip_ade"),
    "coco_cascade": ("detection", "clip_coco", "detailclip_coco"),
}
COMMAND = re.compile(
    r"^    ((?:\w+=\S+ )*(?:python -m|detailclip|launch/|sbatch|make) (?:.*\\\n)*.*|launch/(?:.*\\\n)*.*)", re.MULTILINE
)
IN_TABLES = re.compile(r"\| `(python -m detailclip_jax\.\w[^`|]+)` \|")
PARSERS = {
    "evaluate": evaluate.parser,
    "embed": embed.parser,
    "export": export.parser,
    "import_torch": import_torch.parser,
    "compare": compare.parser,
    "look": look.parser,
    "visualize": visualize.parser,
    "demo": demo.parser,
    "benchmark": benchmark.parser,
    "prepare": prepare.parser,
    "doctor": doctor.parser,
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with what the pages' commands leave in a checkout, of noise: the demo's run, tiny dense runs, photos.

    Its configs/stickers.py is that of the tests, with fewer blocks.
    """
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "configs").mkdir()
    for file in (ROOT / "configs").iterdir():
        (folder / "configs" / file.name).symlink_to(STICKERS if file.name == STICKERS.name else file)
    config = run_config.load(str(STICKERS))
    shapes, rng = experiment.build(config, make_mesh(jax.devices()[:1])).state_shapes, np.random.default_rng(0)
    names = ("params", "ema_params", "batch_stats")
    noise = lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype)
    checkpoint.save_weights(
        folder / "runs/stickers", {n: jax.tree.map(noise, getattr(shapes, n)) for n in names}, config, "noise"
    )
    for name in ("park.jpg", "street.jpg"):
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def dense_runs(checkout):
    """Tiny runs of segmentation and detection, of noise, at the names that the pages have."""
    for name, (task, *others) in RUNS.items():
        made = test_segmentation_step.built() if task == "segmentation" else test_detection_run.built()
        workdir, record = checkout / "runs" / name, {"config": run_config.to_json(made.config), "data_fingerprint": ""}
        run_config.claim_workdir(workdir, made.config)
        class_names.write(workdir, made.classes)
        with closing(Checkpoints(workdir)) as checkpoints:
            checkpoints.save(1, noise_state(made), {"examples": 0}, record)
        for other in others:
            (checkout / "runs" / other).symlink_to(workdir)


@pytest.fixture(scope="module")
def exports(checkout):
    """What the exports that docs/pytorch.md loads have written."""
    for library in ("timm", "open_clip", "transformers"):
        pytest.importorskip(library)
    with chdir(checkout):
        for form, name in (("timm", "vit.pth"), *((form, f"stickers-{form}") for form in ("open_clip", "huggingface"))):
            command = ["--checkpoint=runs/stickers", f"--to={form}", f"--out=runs/{name}"]
            assert export.main(command) == 0


def check_export(names):
    """What the library computes with an export is what we compute."""
    own, image = detailclip_jax.load("runs/stickers"), ["park.jpg"]
    if "features" in names:
        found, ours = names["features"], own.features(image).cls
    else:
        found, ours = names["cosines"], own.encode_image(image) @ own.encode_text(["a dog", "a bus"]).T
    np.testing.assert_allclose(found, ours, atol=0.01 * abs(ours).max())


def is_python(text):
    """Whether a text is Python that computes: it parses, and it calls or assigns something."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call | ast.Assign) for node in ast.walk(tree))


def test_all_python_of_the_pages_is_in_blocks_that_run():
    """Not indented, and not in a fence of another name, except `text`: what cannot run, with its reason above it."""
    assert len(BLOCKS) >= 13
    for page, text in PAGES.items():
        fences = re.findall(r"^```(\w*)\n.*?^```$", text, re.DOTALL | re.MULTILINE)
        assert set(fences) <= {"python", "text"}, page
        assert text.count("```text") == len(re.findall(r"not run by the tests[^\n]*\n\n```text", text)), page
        others = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        indented = re.findall(r"(?:^    .*\n|^\n(?=    ))+", others, re.MULTILINE)
        blocks = ["\n".join(line[4:] for line in block.splitlines()).strip("\n") for block in indented]
        assert not [block for block in blocks if block and is_python(block)], page


@pytest.mark.check
@pytest.mark.parametrize("place", BLOCKS)
def test_python_runs_as_printed(place, checkout, request, monkeypatch, capsys):
    is_dense = place.startswith(SILENT) or "coco_cascade" in BLOCKS[place]
    if is_dense:
        request.getfixturevalue("dense_runs")
    if place.startswith("docs/pytorch.md"):
        request.getfixturevalue("exports")
    monkeypatch.chdir(checkout)
    for table in (fields.WEIGHTS, methods.TERMS):  # an example adds to them; taken back after the test
        monkeypatch.setitem(table, "spread", None)
        del table["spread"]
    names: dict = {}
    with on_one_device():
        exec(compile(BLOCKS[place], place, "exec"), names)
    printed = [float(value) for value in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]
    assert (printed or is_dense) and np.isfinite(printed).all()
    if place.startswith("README.md"):
        assert names["images"].shape == (1, 64) and names["model"].attention(names["image"]).shape == (8, 8)
    elif place.startswith("docs/pytorch.md"):
        check_export(names)
    elif place == "docs/adding_a_method.md, block 1":
        assert printed[2] == pytest.approx(printed[0] + 0.1 * printed[1], rel=1e-5) and 0 < printed[1] < 1
    elif place == "docs/adding_a_method.md, block 2":
        assert printed == [pytest.approx(np.log1p(np.exp(-10)) + np.log(2), rel=1e-5)]
        assert names["method"].name == "siglip" and "logit_bias" in names["method"].networks
    elif place == "docs/python.md, block 1":
        assert len(printed) == 3 and int(names["state"].step) == 3
    elif place == "docs/python.md, block 2":
        assert len(printed) >= 5 and (names["record"].hidden.mask != names["other"]).any()
    elif place.startswith("docs/python.md") and "detector" in names:
        assert len(names["found"].boxes) <= 6 and names["labels"].shape == (40, 56)
    elif place.startswith("docs/python.md"):
        assert names["maps"].shape == (3, 40, 56) and np.allclose(names["shares"].sum(0), 1, atol=1e-5)
    elif "MlpHead" in names:
        features = lambda blocks, norm: [jnp.zeros((1, 2, 2, 8))] * len(blocks)
        logits, _ = names["MlpHead"](3, (0, 1)).init_with_output(jax.random.key(0), features)
        assert logits.shape == (1, 2, 2, 3)
    elif "compare" in BLOCKS[place]:
        assert Path("runs/compared.png").stat().st_size > 1000


def commands():
    """(page, words) of every command in README and docs, without comments."""
    for name, text in PAGES.items():
        for command in COMMAND.findall(text) + IN_TABLES.findall(text):
            yield name, shlex.split(command.replace("\\\n", " "), comments=True)


CASES = list(dict.fromkeys((name, tuple(words)) for name, words in commands()))


def written():
    """What the commands write: the values of --out and --workdir."""
    lines = (" ".join(words) for _, words in CASES)
    return [name for line in lines for name in re.findall(r"--(?:out|workdir)[= ](\S+)", line)]


def test_what_the_commands_write_in_a_checkout_is_ignored_by_git():
    names = {name for name in written() if not name.startswith("/")}
    assert len(names) >= 8
    git = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *names]
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git and a git checkout: an unpacked archive has no .git")
    ignored = subprocess.run(git, capture_output=True, text=True, check=False).stdout.split()
    assert set(ignored) == names


def module_of(words):
    """(module, arguments) of a command of this package; None for `make` and `sbatch`."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    if words[:2] == ["python", "-m"] and words[2].startswith("detailclip_jax."):
        return words[2].removeprefix("detailclip_jax."), words[3:]
    if words[0] == "detailclip":
        return door.COMMANDS[words[1]].module, words[2:]
    if words[0] == "launch/local.sh":
        assert words[1].isdigit()
        return "main", words[2:]
    if words[:2] == ["sbatch", "launch/slurm.sbatch"]:
        return "main", words[2:]
    return None


def check_run(arguments):
    """The flags of `main`: a config file that loads, fields that exist, flags that are declared."""
    values = dict(argument.lstrip("-").split("=", 1) for argument in arguments)
    config = run_config.load(values.pop("config"))
    run_config.check_overrides(config, [name.removeprefix("config.") for name in values if name.startswith("config.")])
    assert {name for name in values if not name.startswith("config.")} <= set(train.flags.FLAGS)


@pytest.mark.parametrize(
    "page, words", CASES, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60]
)
def test_every_command_parses(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
        return
    module, arguments = module_of(words)
    if module == "transfer" and any(argument.startswith("--predict=") for argument in arguments):
        transfer.predict_parser().parse_args(arguments)
    elif module in ("main", "transfer"):
        check_run(arguments)
    elif module == "doctor":
        if any(map(doctor.is_launch, arguments)):
            check_run([argument for argument in arguments if not doctor.is_launch(argument)])
        else:
            doctor.parser().parse_args(arguments)
    elif module == "prepare" and arguments[0] in ("verify", "stats", "to-tfds"):
        assert len(arguments) == (4 if arguments[0] == "to-tfds" else 2)
    elif module == "prepare":
        PARSERS[module]().parse_intermixed_args(arguments)
    else:
        PARSERS[module]().parse_args(arguments)


def has_field(config, name):
    try:
        run_config.check_overrides(config, [name])
    except ValueError:
        return False
    return True


def test_every_field_that_a_page_sets_exists():
    usual, dense = "configs/stickers.py", ("configs/transfer/ade20k_upernet.py", "configs/transfer/coco_cascade.py")
    configs = {
        "docs/segmentation.md": dense[:1],
        "docs/experiments.md": (usual, *dense[:1]),
        "docs/detection.md": dense[1:],
        "docs/data.md": (usual, *dense),
        "docs/preprocessing.md": (usual, *dense),
        "docs/troubleshooting.md": (usual, *dense),
    }
    for page, text in PAGES.items():
        known = [run_config.load(str(ROOT / file)) for file in configs.get(page, (usual,))]
        for name in re.findall(r"--(?:config\.|set )([a-z][\w.]*\w)=", text):
            assert any(has_field(config, name) for config in known), (page, name)


def is_there(name, folder):
    """Whether a path of a page exists: below the page, the repository or the package; NAME stands for any name."""
    roots = (folder, ROOT, ROOT / "detailclip_jax")
    return any(list(root.glob(name.replace("NAME", "*"))) for root in roots)


@pytest.mark.parametrize("page", [*PAGES, *RULES])
def test_every_path_link_and_module_of_a_page_exists(page):
    text, folder = (PAGES | RULES)[page], (ROOT / page).parent
    new = {"detailclip_jax/methods/NAME.py", "configs/baselines/NAME.py", "configs/beyond/NAME.py"}
    rooms = {path.name for path in (ROOT / "detailclip_jax").iterdir() if path.is_dir()}
    tops = rooms | {"detailclip_jax", "configs", "tests", "launch", "docs", "colabs"}
    ticked = re.findall(r"`([\w.]+/[\w./]*)`", text)
    named = {name for name in ticked if name.split("/")[0] in tops} - new
    missing = sorted(name for name in named if not is_there(name.rstrip("/"), folder))
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing += [link for link in links if link and not (folder / link).exists()]
    for module in set(re.findall(r"\bdetailclip_jax(?:\.[a-z_]+)+", text)):
        *parents, last = module.split(".")
        parent = importlib.import_module(".".join(parents))
        if not (hasattr(parent, last) or importlib.util.find_spec(module)):
            missing.append(module)
    assert not missing


def anchor(heading):
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_link_into_a_page_finds_its_heading():
    for page, text in PAGES.items():
        for link, place in re.findall(r"\]\(([^)\s#]*)#([^)\s]+)\)", text):
            target = (ROOT / page).parent / link if link else ROOT / page
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), (page, link, place)


def test_the_page_of_commands_names_each_command_with_its_module():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGES["docs/commands.md"], re.MULTILINE)
    assert dict(rows) == {name: command.module for name, command in door.COMMANDS.items()}


def test_the_readme_is_short_and_links_every_page():
    text = PAGES["README.md"]
    assert len(text.splitlines()) <= 120
    assert all(f"]({page})" in text for page in PAGES if page != "README.md")
