"""The names and variants of the training sets in the record of a run, and in its results."""

import json
import types

import prepare_trees as trees
import pytest
from test_prepare import QUIET

from detailclip_jax import pretraining
from detailclip_jax.config import default
from detailclip_jax.convert import local_engine
from detailclip_jax.convert.job import Request
from detailclip_jax.convert.known_sizes import KNOWN
from detailclip_jax.convert.planning import begin
from detailclip_jax.convert.prepared_set import finish
from detailclip_jax.data import mixture
from detailclip_jax.data.named_sets import named_sets
from detailclip_jax.evaluation import run_report
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training.session import Run, run_record

SLIP = KNOWN["yfcc15m-slip"].variant


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Prepared sets of one example: of a known set with a variant, of one without, and of no known set."""
    folder = tmp_path_factory.mktemp("sets")
    trees.write_tar(folder / "x.tar", trees.sample("a", 1))
    for name in ("yfcc15m-slip", "cc3m", ""):
        out = folder / (name or "own")
        job = begin(Request("webdataset", (str(folder / "x.tar"),), str(out), dataset=name))
        local_engine.run(job, 1, QUIET)
        finish(job)
    return folder


def config_of(path, source="records"):
    config = default()
    config.data.source, config.data.path = source, str(path)
    return config


def test_a_set_has_the_name_and_variant_that_prepare_wrote(sets):
    path = str(sets / "yfcc15m-slip")
    expected = {"path": path, "dataset": "yfcc15m-slip", "variant": SLIP}
    assert named_sets(config_of(path).data) == [expected]
    assert named_sets(config_of(f"{path}@3,{sets}/cc3m@1,{sets}/own@1,stickers:@1").data) == [
        expected,
        {"path": f"{sets}/cc3m", "dataset": "cc3m"},
    ]


def test_nothing_is_said_of_data_without_a_name(sets, tmp_path):
    assert named_sets(config_of(sets / "own").data) == []
    assert named_sets(config_of("").data) == named_sets(config_of("", "stickers").data) == []
    other_split = config_of(sets / "cc3m").data
    other_split.split = "val"
    assert named_sets(other_split) == []
    assert named_sets(config_of(sets / "cc3m", "ade20k").data) == []  # of a run of another kind


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        "{}",
        '{"splits": 3}',
        '{"splits": {"train": []}}',
        '{"splits": {"train": {"dataset": 3}}}',
        '{"splits": {"train": {"dataset": "cc3m", "variant": ["V2"]}}}',
        "[" * 10**5,
    ],
)
def test_a_damaged_description_stops_no_run_and_is_logged(tmp_path, caplog, content):
    file = trees.write(tmp_path / "dataset.json", content)
    assert named_sets(config_of(tmp_path).data) == []
    assert str(file) in caplog.text


def test_a_set_of_no_known_name_is_not_logged(sets, caplog):
    assert named_sets(config_of(sets / "own").data) == []
    assert not caplog.text


def test_the_record_of_a_run_names_its_sets(sets, tmp_path):
    def record_of(name):
        config = config_of(sets / name)
        source = mixture.open_source(config.data)
        return run_record(Run(config, tmp_path, types.SimpleNamespace(), source, Console(), pretraining.PRETRAINING))

    (named,) = record_of("yfcc15m-slip")["data_sets"]
    assert (named["dataset"], named["variant"]) == ("yfcc15m-slip", SLIP)
    assert "data_sets" not in record_of("own")  # as in the records of earlier versions


def test_a_report_reads_the_names_once(sets, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run_report, "named_sets", lambda data: asked.append(data) or named_sets(data))
    run_report.write(tmp_path, {}, config_of(f"{sets}/cc3m"), step=1)
    assert len(asked) == 1


def test_the_results_name_the_sets(sets, tmp_path):
    text = run_report.write(tmp_path, {}, config_of(f"{sets}/yfcc15m-slip,{sets}/cc3m"), step=1)
    assert f"yfcc15m-slip ({SLIP})" in text and "cc3m" in text
    written = json.loads((tmp_path / "results.json").read_text())
    assert [each["dataset"] for each in written["data_sets"]] == ["yfcc15m-slip", "cc3m"]
    assert written["data_sets"][0]["variant"] == SLIP
    assert "Trained on" not in run_report.write(tmp_path, {}, config_of(sets / "own"), step=1)
    assert "data_sets" not in json.loads((tmp_path / "results.json").read_text())
