"""The page of `evaluate --tasks=detail`, and the published numbers on it."""

import json

import pytest
from evaluation_data import write_checkpoint

from detailclip_jax import evaluate as command
from detailclip_jax.evaluation import detail_report, paper_numbers
from detailclip_jax.evaluation.metrics import Metric
from detailclip_jax.evaluation.results import Outcome, record
from detailclip_jax.evaluation.subject import from_checkpoint
from detailclip_jax.interop import published


@pytest.fixture
def workdir(tmp_path):
    return write_checkpoint(tmp_path / "clip", "clip")


def rows_of(page):
    """The cells of the rows of all tables, by the first cell."""
    lines = (line.strip("| ").split("|") for line in page.splitlines() if line.startswith("| "))
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def outcome_of(workdir):
    """Two measurements and two missing sets of a checkpoint."""
    score = Metric(0.5, n=10, chance=0.1, low=0.4, high=0.6)
    identity = {"weights": "student", "protocol": "slip"}
    measured = [
        ("retrieval", "urban1k", "image_to_text_r1"),
        ("retrieval", "urban1k", "image_to_text_r5"),
        ("choice", "stickers", "side"),
    ]
    records = [record({**identity, "task": task, "dataset": name}, metric, score) for task, name, metric in measured]
    missing = {"dense:voc20:naclip": "voc20 is not there", "choice:fg_ovd": "no data.  Do this:\n  get it"}
    missing["choice:fg_ovd:roi"] = missing["choice:fg_ovd"]
    return Outcome(records, missing, {}, {}, [], from_checkpoint(workdir), {})


def test_published_numbers_stand_beside_the_scores_of_their_model(workdir):
    origin = {"repository": "openai/clip-vit-base-patch16", "revision": "abc", "licence": "mit"}
    published.write_origin(workdir, "hf://openai/clip-vit-base-patch16", origin)
    page = detail_report.markdown(outcome_of(workdir))
    assert page.startswith("# Detail: hf://openai/clip-vit-base-patch16\n\nRevision abc, licence mit.\n")
    rows = rows_of(page)
    assert rows["urban1k, image to text R@1"] == ["50.0 (40.0-60.0)", "10.00", "10", "68.1", paper_numbers.HIMO_CLIP]
    assert rows["stickers, side"][-1] == "absent" and "urban1k, image to text R@5" not in rows
    assert "\n- dense:voc20:naclip: voc20 is not there\n- choice:fg_ovd, choice:fg_ovd:roi: get it\n" in page


def test_a_run_of_ones_own_has_no_published_numbers(workdir):
    page = detail_report.markdown(outcome_of(workdir))
    assert page.startswith(f"# Detail: {workdir}\n") and "published" not in page.casefold()
    assert len(rows_of(page)["stickers, side"]) == 3


def test_every_published_number_is_of_a_known_model_and_task():
    models = {*paper_numbers.REPOSITORIES.values()}
    for model, task, _, metrics, values, source in paper_numbers.PRINTED:
        assert model in models and task in detail_report.SECTIONS and source
        assert len(metrics) == len(values) and all(0 < value < 100 for value in values)


@pytest.mark.slow
def test_the_command_writes_the_page_without_any_set_on_disk(workdir, tmp_path, capsys):
    """Only the read-out of the model is measured; what is missing is no error."""
    data = tmp_path / "none"
    arguments = [f"--checkpoint={workdir}", f"--out={tmp_path}", f"--data-dir={data}", "--tasks=detail"]
    assert command.main([*arguments, "--num-examples=10", "--batch-size=8"]) == 0
    assert f"{tmp_path / detail_report.FILE} is the page" in capsys.readouterr().out
    page = (tmp_path / detail_report.FILE).read_text()
    rows = rows_of(page)
    assert {"stickers, accuracy", "stickers_long, image to text R@1", "stickers:naclip, mIoU"} <= rows.keys()
    assert "- retrieval:urban1k: hf download BeichenZhang/Urban1k" in page
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert {json.loads(line)["dataset"] for line in lines} == {"stickers", "stickers_long", "stickers:naclip"}
