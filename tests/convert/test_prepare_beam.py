"""The conversion on Apache Beam: its DirectRunner, and its portable runner, the way onto Flink, Spark and Dataflow."""

import sys

import prepare_trees as trees
import pytest
from test_prepare import Killed, contents, prepared, run_until_killed

from detailclip_jax.convert import beam_engine
from detailclip_jax.convert.job import Request
from detailclip_jax.convert.planning import begin
from detailclip_jax.convert.prepared_set import finish
from detailclip_jax.prepare import main


def test_without_beam_the_message_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    trees.webdataset(tmp_path / "in")
    assert main(["webdataset", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--engine", "beam"]) == 2
    assert "pip install 'detailclip_jax[beam]'" in capsys.readouterr().err


@pytest.fixture
def needs_beam():
    pytest.importorskip("apache_beam", reason="the extra `beam` is not installed; it pins older pillow and protobuf")


@pytest.mark.filterwarnings("ignore")  # of Beam and of what it imports
@pytest.mark.usefixtures("needs_beam")
class TestBeam:
    @pytest.mark.parametrize(
        "runner",
        [
            ("--runner=DirectRunner",),
            (
                "--runner=PortableRunner",
                "--job_endpoint=embed",
                "--environment_type=LOOPBACK",
            ),  # a job server, over gRPC
        ],
    )
    def test_the_output_is_that_of_the_local_engine(self, tmp_path, runner):
        trees.webdataset(tmp_path / "in", num_tars=4)
        prepared(tmp_path / "in", tmp_path / "local")
        command = ["webdataset", str(tmp_path / "in"), "--out", str(tmp_path / "beam")]
        assert main([*command, "--engine", "beam", "--", *runner]) == 0
        assert contents(tmp_path / "beam") == contents(tmp_path / "local")

    def test_it_takes_up_what_another_engine_left(self, tmp_path):
        trees.webdataset(tmp_path / "in")
        prepared(tmp_path / "in", tmp_path / "local")
        request = Request("webdataset", (str(tmp_path / "in"),), str(tmp_path / "beam"))
        with pytest.raises(Killed):
            run_until_killed(begin(request), 10)
        job = begin(request)
        beam_engine.run(job, ["--runner=DirectRunner"])
        finish(job)
        assert contents(tmp_path / "beam") == contents(tmp_path / "local")
