"""Stored configs of other versions: missing, unknown and renamed fields, see `config.stored_fields`."""

import json
from pathlib import Path

import pytest

from detailclip_jax.config import fields, run_config, segmentation_fields, stored_fields
from detailclip_jax.config.declarations import FROM_0, Field
from detailclip_jax.config.run_config import as_in_run, claim_workdir, differences, from_json, read, to_json

NEW = Field(3, "a field of a later version", "test", range=FROM_0)
CHANGES_THE_RUN = Field(3, "a field of a later version", "test", range=FROM_0, neutral=0)
TABLES = [(fields.LOGGING, "logging.new"), (fields.MODEL, "model.new"), (fields.RUN, "new"), (fields.CROP, "crop")]


def a_run(tmp_path, spec="configs/stickers.py"):
    """The workdir of a run of today, and its config."""
    config = run_config.resolve(run_config.load(spec), 1000)
    claim_workdir(tmp_path, config)
    return config


@pytest.mark.parametrize(("table", "name"), TABLES[:3])
def test_a_run_goes_on_after_a_field_was_added(tmp_path, monkeypatch, caplog, table, name):
    a_run(tmp_path)
    monkeypatch.setitem(table, name.rpartition(".")[2], CHANGES_THE_RUN)
    monkeypatch.setattr(stored_fields, "_WARNED", set())
    stored = read(tmp_path / "config.json")
    assert run_config.flatten(stored)[name] == 0
    assert f"config.json lacks some fields, which have their neutral values: {name} = 0" in caplog.text

    now = run_config.resolve(run_config.load("configs/stickers.py"), 1000)
    for _ in range(2):  # the workdir remembers that it lacks the field
        assert run_config.flatten(now)[name] == 3
        going_on = as_in_run(now, tmp_path)
        assert run_config.flatten(going_on)[name] == 0
        claim_workdir(tmp_path, going_on)
    with pytest.raises(ValueError, match=rf"{name}: 0 in the workdir, 3 now"):
        claim_workdir(tmp_path, as_in_run(now, tmp_path, [name]))


def test_a_field_without_a_neutral_value_has_its_default(tmp_path, monkeypatch):
    a_run(tmp_path)
    monkeypatch.setitem(fields.LOGGING, "new", NEW)
    assert read(tmp_path / "config.json").logging.new == 3


def test_a_group_and_the_fields_of_a_crop_may_be_missing(tmp_path, monkeypatch):
    a_run(tmp_path, "configs/stickers.py:method=dino")
    monkeypatch.setitem(fields.CROP, "new", CHANGES_THE_RUN)
    monkeypatch.setitem(fields.GROUPS, "new_group", {"new": NEW})
    config = read(tmp_path / "config.json")
    assert "new" not in config.views.crops.local and config.new_group.new == 3
    now = run_config.resolve(run_config.load("configs/stickers.py:method=dino"), 1000)
    assert now.views.crops.local.new == 3
    going_on = as_in_run(now, tmp_path)
    assert going_on.views.crops.local.new == 0
    claim_workdir(tmp_path, going_on)


def test_a_run_with_a_crop_of_few_fields_goes_on(tmp_path):
    config = run_config.load("configs/stickers.py:method=dino")
    config.views.crops.local = {"count": 2, "size": 32}
    config = run_config.resolve(config, 1000)
    for _ in range(2):
        claim_workdir(tmp_path, as_in_run(config, tmp_path))
    assert read(tmp_path / "config.json").views.crops.local.to_dict() == {"count": 2, "size": 32}


def test_a_field_that_may_change_is_that_of_the_file(tmp_path, monkeypatch):
    a_run(tmp_path)
    monkeypatch.setitem(fields.LOGGING, "new", CHANGES_THE_RUN._replace(may_change=True))
    now = run_config.resolve(run_config.load("configs/stickers.py"), 1000)
    assert as_in_run(now, tmp_path).logging.new == 0
    now.unlock()
    now.logging.new = 50
    assert as_in_run(now, tmp_path).logging.new == 50


def test_a_run_of_a_dense_task_goes_on_after_a_field_was_added(tmp_path, monkeypatch):
    config = segmentation_fields.segmentation()
    claim_workdir(tmp_path, config)
    monkeypatch.setitem(segmentation_fields.ENCODER, "new", CHANGES_THE_RUN)
    assert read(tmp_path / "config.json").encoder.new == 0
    assert differences(read(tmp_path / "config.json"), as_in_run(segmentation_fields.segmentation(), tmp_path)) == {}


@pytest.mark.parametrize("name", ["new", "model.new", "views.crops.large.new", "new_group.new"])
def test_an_unknown_field_is_refused_by_name(tmp_path, name):
    a_run(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    *groups, last = name.split(".")
    group = stored
    for part in groups:
        group = group.setdefault(part, {})
    group[last] = 1
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=rf"config\.json has the field {name}, .*use the version that wrote it"):
        read(tmp_path / "config.json")
    del stored["schema"]  # of a commit that did not name the user's own fields
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert run_config.flatten(read(tmp_path / "config.json"))[name] == 1


@pytest.mark.parametrize(("schema", "message"), [(2, "has the schema 2.*up to 1"), ("x", "schema 'x' is not a whole")])
def test_a_schema_of_the_future_is_refused(tmp_path, schema, message):
    a_run(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text()) | {"schema": schema}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "config.json")


def test_a_users_own_fields_come_back():
    config = run_config.load("configs/stickers.py")
    with config.unlocked():
        config.model.window = 7
    stored = json.loads(to_json(config))
    assert (stored["schema"], stored["own_fields"]) == (1, ["model.window"])
    assert from_json(to_json(config)).to_dict() == config.to_dict()


def test_a_renamed_field_is_moved_to_its_new_name():
    stored = {"model": {"depth": 3}, "seed": 5}
    moves = {0: {"model.depth": "encoder.image.depth"}, 1: {"seed": "data.seed", "absent": "model.absent"}}
    stored_fields.rename(stored, 0, moves)
    assert stored == {"encoder": {"image": {"depth": 3}}, "data": {"seed": 5}}
    newer = {"model": {"depth": 3}}
    stored_fields.rename(newer, 1, moves)
    assert newer == {"model": {"depth": 3}}


@pytest.mark.parametrize("groups", [fields.GROUPS, segmentation_fields.GROUPS])
def test_neutral_values_are_allowed_values(groups):
    for above, table in groups.items():
        for name, field in table.items():
            field.check(f"{above}.{name}", field.neutral_value)


def test_the_stored_text_of_an_earlier_commit_has_no_number_and_is_read(tmp_path):
    config = a_run(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["schema"]
    Path(tmp_path / "config.json").write_text(json.dumps(stored))
    assert differences(read(tmp_path / "config.json"), config) == {}
