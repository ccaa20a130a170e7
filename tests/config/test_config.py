"""Config files, their golden text, and workdirs with another or a damaged config."""

import ast
import functools
import itertools
import json
import os
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from detailclip_jax import config as base
from detailclip_jax import methods
from detailclip_jax.config import config_files, fields, run_config, segmentation_fields
from detailclip_jax.config.config_files import METHOD_FOLDERS, find
from detailclip_jax.config.run_config import ABSENT, claim_workdir, differences, load, resolve
from detailclip_jax.methods.distill import record_of
from detailclip_jax.pretraining import validate

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden/configs"
YFCC15M = 14_689_580
TRANSFER = sorted((ROOT / "configs/transfer").glob("*.py"))
FILES = {folder: sorted(file.stem for file in (ROOT / "configs" / folder).glob("*.py")) for folder in METHOD_FOLDERS}
RECIPES = ("debias", "distill", "fgclip", "fgclip2", "flip", "lit", "negclip")  # of clip, and of siglip
BEYOND = [name for name in FILES["beyond"] if not name.startswith("continue_") and name not in RECIPES]
CASES = {
    "stickers": "stickers.py",
    **{f"stickers-{method}": f"stickers.py:method={method}" for method in (*FILES["baselines"], *BEYOND)},
    **{f"{folder}-{name}": f"{folder}/{name}.py" for folder, names in FILES.items() for name in names},
    **{f"beyond-{method}-captions=2": f"beyond/{method}.py:captions=2" for method in ("tips", "tipsv2")},
    "ablation_table4-row=5": "ablation_table4.py:row=5",
    "stickers-teacher=enclosing": "stickers.py:teacher=enclosing",
    "stickers-method=clip,region=1": "stickers.py:method=clip,region=1",
    "stickers-method=cosmos,local=False": "stickers.py:method=cosmos,local=False",
    "stickers-method=clip,size=small": "stickers.py:method=clip,size=small",
    "beyond-lit-method=clip": "beyond/lit.py:method=clip",
    "detail": "detail.py",
    "detail-data=yfcc": "detail.py:data=yfcc",
    "statements": "statements.py",
    "statements-stage=sides": "statements.py:stage=sides",
    "vitb16_continue": "vitb16_continue.py",
    "vitb16_continue-method=clip": "vitb16_continue.py:method=clip",
    "vitb16_yfcc": "vitb16_yfcc.py",
    "vitb16_yfcc-teacher=enclosing": "vitb16_yfcc.py:teacher=enclosing",
    "vitb16_yfcc-epochs=50": "vitb16_yfcc.py:epochs=50",
    "vitb16_yfcc-preset=reference": "vitb16_yfcc.py:preset=reference",
}


def config_of(spec="stickers.py", **fields):
    config = load(str(ROOT / "configs" / spec))
    config.update_from_flattened_dict(fields)
    return config


def with_teacher(config):
    """The config as if a frozen teacher, if it has one, were of the student's size."""
    if config.losses.weights.distill:
        config.distill.record = record_of(config)
    return config


def test_every_field_has_a_meaning_and_a_source():
    declared = {name: fields.field_of(name) for name in run_config.flatten(base.default())}
    for name, field in (*declared.items(), *fields.CROP.items()):
        assert field and field.meaning.strip() and field.source.strip(), name


@pytest.mark.parametrize("spec", [None, *CASES.values()])
def test_help_lists_every_field_of_a_config(spec):
    config = config_of(spec) if spec else base.default()
    lines = run_config.help_text(config).splitlines()
    names = [line.split(" = ")[0] for line in lines if " = " in line and not line.startswith(" ")]
    assert names == [name for name in names if fields.field_of(name)], "a field that nobody declared"
    own = [name for name in run_config.flatten(config) if fields.field_of(name)]
    assert set(own) <= set(names) and len(names) == len(set(names))


def test_help_says_where_a_file_differs():
    text = run_config.help_text(config_of("stickers.py"))
    assert "batch_size = 128 (default: 4096)\n    image-text pairs per step" in text
    assert "[paper 4.1; reference: 256 x 16 A100]" in text
    assert "seed = 0\n" in text and "total_steps = 600 (default: None)" in text
    assert "views.crops.enclosing.kind = 'enclosing'" in run_config.help_text(
        config_of("stickers.py:teacher=enclosing")
    )


@pytest.mark.parametrize("name", CASES)
def test_what_a_resolved_config_changes_is_golden(name):
    """DETAILCLIP_RENEW_GOLDEN=1 pytest tests/config/test_config.py writes the files anew."""
    check_golden(name, changed_fields(resolve(config_of(CASES[name]), YFCC15M)))


def test_the_defaults_are_golden():
    crop = {f"views.crops.NAME.{name}": field.default for name, field in fields.CROP.items()}
    check_golden("defaults", run_config.flatten(base.default().to_dict()) | crop)


def changed_fields(config):
    """Fields that differ from their default, and those that no default has."""
    values = run_config.flatten(config.to_dict())
    usual = {name: field.default for name in values if (field := fields.field_of(name))}
    return {name: value for name, value in values.items() if name not in usual or value != usual[name]}


def check_golden(name, values):
    text = "".join(f"{field} = {value!r}\n" for field, value in values.items())
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("DETAILCLIP_RENEW_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), "if this is meant: DETAILCLIP_RENEW_GOLDEN=1 pytest tests/config/test_config.py"


@pytest.mark.parametrize("name", CASES)
def test_config_files_are_valid(name):
    validate(with_teacher(config_of(CASES[name])))


@pytest.mark.parametrize("name", CASES)
def test_config_files_build_their_row(name):
    config = resolve(with_teacher(config_of(CASES[name])), YFCC15M)
    assert methods.build(config).name == config.method


@pytest.mark.parametrize(
    "spec, method, made",
    [
        ("stickers.py", "detailclip", "stickers.py"),
        ("stickers.py", "clip", "stickers.py:method=clip"),
        ("stickers.py:clip", "slip", "stickers.py:clip,method=slip"),
        ("vitb16_yfcc.py:epochs=50", "detailclip", "vitb16_yfcc.py:epochs=50"),
    ],
)
def test_a_method_brings_its_own_config(spec, method, made):
    folder = ROOT / "configs"
    assert run_config.made_for(f"{folder}/{spec}", method) == f"{folder}/{made}"
    assert load(f"{folder}/{made}").method == method


def test_a_file_of_ones_own_may_set_any_method(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from detailclip_jax import config\ndef get_config():\n    return config.default()\n")
    assert run_config.made_for(str(file), "clip") == str(file)


@pytest.mark.parametrize("spec", ["stickers.py", "stickers.py:method=slip", "stickers.py:method=aclip"])
def test_methods_that_compare_views_need_two(spec):
    config = config_of(spec)
    config.views.crops.large.count = 1
    with pytest.raises(ValueError, match=r"two views.*views\.crops\.large\.count is 1"):
        methods.build(config)


@pytest.mark.parametrize("name", CASES)
def test_no_config_drops_a_field(name):
    """Fields are set one by one: a run may give any of the default's."""
    fields = run_config.flatten(config_of(CASES[name]))
    wanted = (name for name in run_config.flatten(base.default()) if not name.startswith("views.crops"))
    entries = {name.rpartition(".")[0] for name in fields}  # of a group that is empty by default, such as part_rates
    assert {name for name in wanted if name not in entries} <= set(fields)


@pytest.mark.parametrize("method", methods.METHODS)
def test_stickers_do_not_mirror_images_that_are_compared_with_captions(method):
    """A caption of a scene says which object is to the left of another."""
    config = resolve(config_of(f"stickers.py:method={method}"), YFCC15M)
    built = methods.build(config)
    compared = [head.passes for head in built.heads if "image_embedding" in head.makes]
    assert bool(compared) == built.has_text
    crops = {built.passes[name].view for names in compared for name in names}
    assert {crop: config.views.crops[crop].get("flip", 0.0) for crop in crops} == dict.fromkeys(crops, 0.0)


@pytest.mark.parametrize("method", methods.METHODS)
def test_continued_training_keeps_a_constant_momentum(method):
    """SILC, SigLIP 2 and COSMOS are defined with one; the others take a slower teacher than from scratch."""
    scratch = config_of(f"{'vitb16_yfcc' if method == 'detailclip' else folder_of(method)}.py").ema
    continued = config_of(f"vitb16_continue.py:method={method}").ema
    constant = scratch.start == scratch.end
    assert constant == (method in ("silc", "siglip2", "cosmos"))
    assert (continued.start, continued.end) == ((scratch.start, scratch.end) if constant else (0.999, 1.0))


@pytest.mark.parametrize("method", methods.METHODS)
def test_continued_training_has_its_own_length_and_rates(method):
    """SuperCLIP and dino.txt from scratch count steps; B-CLIP's pool has a hundred times the rate of its encoders."""
    continued = config_of(f"vitb16_continue.py:method={method},epochs=2")
    assert (continued.num_epochs, continued.total_steps) == (2, None)
    assert continued.optimizer.part_rates.to_dict() == {}


@pytest.mark.parametrize("method", BEYOND)
def test_stickers_keep_what_defines_a_later_method(method):
    """Their rates and weights differ; a constant momentum and the temperatures of the teacher do not."""
    own, stickers = config_of(f"beyond/{method}.py"), config_of(f"stickers.py:method={method}")
    assert (stickers.ema.start == stickers.ema.end) == (own.ema.start == own.ema.end)
    for name in ("teacher_temperature", "patch_temperature", "student_temperature", "patch_over"):
        assert stickers.losses[name] == own.losses[name], name


def folder_of(method):
    return f"{'beyond' if method in BEYOND else 'baselines'}/{method}"


LABEL = re.compile(r"\[(code|paper|sec|recalled|choice|second-hand)\b[^\]]*\]")


@pytest.mark.parametrize("method", [*BEYOND, *RECIPES])
def test_every_number_of_a_later_recipe_carries_a_label_that_the_page_explains(method):
    text, page = (ROOT / f"configs/beyond/{method}.py").read_text(), (ROOT / "docs/methods.md").read_text()
    assert {match[1] for match in LABEL.finditer(text)} <= {match[1] for match in LABEL.finditer(page)}
    for first, last in statements_with_numbers(text):
        lines = text.splitlines()[first - 2 : last]  # with a comment above
        assert LABEL.search("\n".join(lines)), f"{method}.py, lines {first}-{last} have no label"


def statements_with_numbers(text):
    """First and last line of what sets a field to a number, but in functions whose docstring has a label."""
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    unlabelled = [function.body for function in functions if not LABEL.search(ast.get_docstring(function) or "")]
    for node in itertools.chain.from_iterable(unlabelled):
        is_field = isinstance(node, ast.Expr | ast.Assign) and ast.unparse(node).startswith("c.")
        numbers = (x.value for x in ast.walk(node) if isinstance(x, ast.Constant) and type(x.value) in (int, float))
        if is_field and any(True for _ in numbers):
            yield node.lineno, node.end_lineno


def test_every_row_has_a_baseline_and_runs_on_stickers():
    assert {*FILES["baselines"], *BEYOND, "detailclip"} == set(methods.METHODS)


def test_the_rows_of_table_4():
    weights = [config_of(f"ablation_table4.py:row={row}").losses.weights.to_dict() for row in range(1, 6)]
    assert [(w["cls"], w["patch"], w["reconstruction"]) for w in weights] == [
        *((1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, 2.0), (0.5, 0.5, 0.5), (0.0, 0.0, 1.0)),
    ]


def test_paper_run_length():
    """25 epochs of 14,689,580 pairs in whole batches of 4096: 3586 steps each."""
    resolved = resolve(config_of("vitb16_yfcc.py"), YFCC15M)
    assert (resolved.steps_per_epoch, resolved.total_steps) == (3586, 89_650)
    assert resolve(config_of("vitb16_yfcc.py:50"), YFCC15M).total_steps == 179_300


def test_reference_preset_differs_from_the_paper_in_four_fields():
    paper, reference = config_of("vitb16_yfcc.py"), config_of("vitb16_yfcc.py:preset=reference")
    assert differences(paper, reference) == {
        "data.caption": ("random", "concat"),
        "data.keep_eot": (True, False),
        "masking.granularity": ("patch", "cell2x2"),
        "views.crops.large.scale": ([0.5, 1.0], [0.14, 1.0]),
    }


def test_outside_of_a_checkout_the_bundled_config_files_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = config_files.bundled_folder()
    assert find("stickers") == find("configs/stickers.py") == configs / "stickers.py"
    assert find("baselines/slip") == configs / "baselines/slip.py"
    assert load("stickers:method=clip").method == "clip"
    with pytest.raises(FileNotFoundError, match=r"unknown config file 'sticker'; did you mean 'configs/stickers.py'"):
        load("sticker")


def test_a_config_file_in_the_working_directory_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs/stickers.py"
    own.write_text("")
    assert find("stickers").absolute() == own


def test_a_wheel_reads_the_configs_inside_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(config_files, "PACKAGE", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / config_files.BUNDLED).mkdir()
    (tmp_path / config_files.BUNDLED / "mine.py").write_text("")
    assert find("configs/mine.py") == tmp_path / config_files.BUNDLED / "mine.py"
    assert config_files.known() == ["configs/mine.py"]


@pytest.mark.parametrize(
    "group, name, nearest",
    [
        ("", "totl_steps", "total_steps"),
        ("model", "image_sise", "image_size"),
        ("model.image_style", "poling", "pooling"),
        ("losses.weights", "clipp", "clip"),
        ("ema", "strt", "start"),
    ],
)
def test_a_typo_is_told_where_it_is_written(group, name, nearest):
    config = base.default()
    fields = functools.reduce(getattr, group.split(".") if group else [], config)
    with pytest.raises(ValueError, match=f"unknown config field '{name}'; did you mean '{nearest}'[?] Known: "):
        setattr(fields, name, 5)
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        config.update_from_flattened_dict({f"{group}.{name}".lstrip("."): 5})
    assert name not in fields


def test_groups_of_free_names_take_them_and_groups_are_replaced_whole():
    config = base.default()
    config.views.crops.enclosing = base.crop(kind="enclosing")
    config.evaluators.zero_shot = {"num_scenes": 3}
    config.optimizer.part_rates.image = 0.1
    config.model.custom = {"patch_size": 8}
    config.model.custom.width = 32
    config.ema = {"start": 0.5, "end": 0.6}
    config.losses = ConfigDict(config.losses.to_dict())
    with pytest.raises(ValueError, match="did you mean 'weights'"):
        config.losses.wieghts = 1
    with config.unlocked():
        config.mine = 1
    with pytest.raises(ValueError, match="unknown config field 'yours'"):
        config.yours = 1
    config.views.crops.local = base.crop()
    assert (config.mine, config.ema.end, sorted(config.views.crops)) == (1, 0.6, ["enclosing", "large", "local"])


def test_the_views_of_a_crop_may_share_one_probability():
    config = config_of()
    config.views.crops = {"large": {**config.views.crops.large, "blur_p": 0.3}}
    validate(config)


@pytest.mark.parametrize(
    "fields, given, length",
    [
        ({}, [], (600, 60)),
        ({"num_epochs": 3}, ["num_epochs"], (180, 60)),  # an epoch of the file's
        ({"num_epochs": 3, "data.source": "records"}, ["num_epochs", "data.source"], (30, 10)),  # of the data's
        ({"num_epochs": 3, "data.source": "records", "steps_per_epoch": 4}, ["num_epochs", "steps_per_epoch"], (12, 4)),
    ],
)
def test_epochs_that_are_given_count(fields, given, length):
    resolved = resolve(run_config.without_overridden(config_of(**fields), given), 1280)
    assert (resolved.total_steps, resolved.steps_per_epoch) == length


@pytest.mark.parametrize(
    "fields, given, length, epochs",
    [
        ({}, [], (600, 60), 10.0),
        ({"data.source": "records"}, ["data.source"], (600, 10), 59.8),  # 1284 examples, 128 a step
        ({"data.path": "records:/data"}, ["data.path"], (600, 10), 59.8),
        ({"data.source": "records", "total_steps": 27}, ["data.source", "total_steps"], (27, 10), 2.69),
        ({"data.source": "records", "steps_per_epoch": 4}, ["data.source", "steps_per_epoch"], (600, 4), 59.8),
        ({"data.source": "records", "batch_size": 2000}, ["data.source", "batch_size"], (600, 1), 935),
    ],
)
def test_an_epoch_of_own_data_is_not_that_of_the_stickers(fields, given, length, epochs):
    """configs/stickers.py says steps_per_epoch = 60, of scenes without end."""
    counted = run_config.without_overridden(config_of("stickers.py", **fields), given, config_of("stickers.py"))
    resolved = resolve(counted, 1284)
    assert (resolved.total_steps, resolved.steps_per_epoch) == length
    assert run_config.num_epochs(resolved, 1284) == pytest.approx(epochs, rel=2e-3)


def test_the_words_of_the_stickers_are_not_those_of_own_data():
    """A head for them alone would ignore most tokens of other captions."""
    written, own = config_of("detail.py"), config_of("detail.py", **{"data.source": "records"})
    assert run_config.without_overridden(written, [], written).losses.token_ids == written.losses.token_ids != ()
    assert run_config.without_overridden(own, ["data.source"], written).losses.token_ids == ()
    assert (
        run_config.without_overridden(own, ["losses.token_ids"], written).losses.token_ids == written.losses.token_ids
    )


def test_a_file_for_own_data_keeps_its_epoch():
    written = config_of("stickers.py", **{"data.source": "records", "data.path": "/a", "steps_per_epoch": 7})
    other = config_of("stickers.py", **{"data.source": "records", "data.path": "/b", "steps_per_epoch": 7})
    assert run_config.without_overridden(other, ["data.path"], written).steps_per_epoch == 7


def test_resolve_leaves_the_original_alone_and_keeps_what_is_given():
    config = base.default()
    config.total_steps = 7
    resolved = resolve(config, 3 * 4096 + 1)
    assert (resolved.total_steps, resolved.steps_per_epoch, config.steps_per_epoch) == (7, 3, None)


def test_json_round_trip():
    config = resolve(config_of(), YFCC15M)
    again = run_config.from_json(run_config.to_json(config))
    assert again == ConfigDict(config.to_dict())
    assert again.optimizer.betas == (0.9, 0.98)


def test_workdir_of_another_config_is_refused(tmp_path):
    config = resolve(config_of(), YFCC15M)
    claim_workdir(tmp_path / "run", config)
    other = resolve(config_of(batch_size=64, **{"model.size": "S/16"}), YFCC15M)
    with pytest.raises(
        ValueError, match=r"(?s)batch_size: 128 in the workdir, 64 now.*model.size: 'tiny' in the workdir, 'S/16' now"
    ):
        claim_workdir(tmp_path / "run", other)
    assert "128" in (tmp_path / "run/config.json").read_text()


def test_a_workdir_of_another_method_names_the_method_first_and_ten_fields_at_most(tmp_path):
    configs = [resolve(load(f"stickers.py:method={method}"), 1000) for method in ("clip", "ibot")]
    claim_workdir(tmp_path, configs[0])
    with pytest.raises(ValueError, match="another config") as caught:
        claim_workdir(tmp_path, configs[1])
    lines = str(caught.value).splitlines()
    assert lines[1] == "  method: 'clip' in the workdir, 'ibot' now"
    assert len(lines) == 13 and lines[11] == f"  and {len(differences(*configs)) - 10} more"


def test_how_long_how_often_and_where_to_may_differ(tmp_path):
    claim_workdir(tmp_path, resolve(config_of(), YFCC15M))
    longer = {
        "total_steps": 9,
        "log_every": 1,
        "checkpoint_every": 2,
        "evaluate_at_end": False,
        "data.path": "/x",
    }
    claim_workdir(tmp_path, resolve(config_of(**longer), YFCC15M))
    assert run_config.from_json((tmp_path / "config.json").read_text()).total_steps == 9


@pytest.mark.parametrize(
    "path, other",
    [("/a@3,/b@1", "/a@1,/b@1"), ("/a@3,/b@1", "/a@1,/b@3"), ("/a,/b", "/a@3,/b@1"), ("/a", "/a,/b"), ("/a,/b", "/a")],
)
def test_sets_may_lie_elsewhere_but_not_be_mixed_otherwise(tmp_path, path, other):
    def config(path):
        return resolve(config_of(**{"data.source": "records", "data.path": path}), YFCC15M)

    claim_workdir(tmp_path, config(path))
    claim_workdir(tmp_path, config(path.replace("/", "/moved/").replace("@3", "@6.0").replace("@1", "@2")))
    was = (tmp_path / "config.json").read_text()
    message = r"data.path \(its weights, which give the order of examples\): '/moved/a.*' in the workdir, '/a.*' now"
    with pytest.raises(ValueError, match=message):
        claim_workdir(tmp_path, config(other))
    assert (tmp_path / "config.json").read_text() == was


def test_a_field_that_only_one_config_has_differs():
    old, new = config_of(), config_of()
    with new.unlocked():
        new.model.window = 7
    assert differences(old, new) == {"model.window": (ABSENT, 7)}


@pytest.mark.parametrize(
    "spec, workdir",
    [
        ("configs/stickers.py", "runs/stickers"),
        ("configs/stickers.py:method=clip", "runs/stickers-method=clip"),
        ("a/b.py:x=1,y=c d/e", "runs/b-x=1-y=c-d-e"),
    ],
)
def test_default_workdir(spec, workdir):
    assert run_config.default_workdir(spec) == workdir


@pytest.mark.parametrize("text", ["", "[]", "7", "null", '"x"', "{", "[" * 100_000])
def test_a_damaged_config_json_is_named(tmp_path, text):
    config = resolve(config_of(), YFCC15M)
    claim_workdir(tmp_path, config)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^(workdir )?{tmp_path}(/config.json is damaged: .*copy it again| belongs)"):
        claim_workdir(tmp_path, config)


WRONG = [
    ("seed", "x"),
    ("seed", {"a": 1}),
    ("batch_size", True),
    ("optimizer.learning_rate", None),
    ("model.size", 16),
    ("total_steps", 1.5),
    ("preprocess.mean", ["a", 0, 0]),
    ("views.crops.large.blur_p", ["a"]),
    ("data.text_buckets", [[1]]),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_another_type_in_config_json_is_named(tmp_path, name, value):
    saved = config_of().to_dict()
    *groups, field = name.split(".")
    functools.reduce(lambda group, part: group[part], groups, saved)[field] = value
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config.json is damaged: .*\b{name}\b.*copy it again"):
        claim_workdir(tmp_path, config_of())


def test_the_types_of_a_dense_run_are_those_of_its_own_fields(tmp_path):
    saved = segmentation_fields.segmentation().to_dict()
    saved["head"]["name"] = 3
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"is damaged: head.name has the value 3, of another type than 'upernet'"):
        run_config.read(tmp_path / "config.json")


@pytest.mark.parametrize("config", [*CASES.values(), *(f"transfer/{path.name}" for path in TRANSFER)])
def test_every_config_can_be_read_back(config):
    config = load(str(ROOT / "configs" / config))
    assert run_config.differences(run_config.from_json(run_config.to_json(config)), config) == {}
