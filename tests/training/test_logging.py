"""Images and settings in TensorBoard, and Weights & Biases by a stand-in for its package."""

import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from detailclip_jax import pretraining
from detailclip_jax.config import run_config
from detailclip_jax.figures import style
from detailclip_jax.runtime import wandb_writer
from detailclip_jax.runtime.metric_files import MetricWriter
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.wandb_writer import WandbError, WandbWriter
from detailclip_jax.training import session, train


def events(workdir):
    """All events of a workdir: records of length (8 bytes), its checksum (4), the event and its checksum (4)."""
    for file in sorted((workdir / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event()
            event.ParseFromString(data[at + 12 : at + 12 + length])
            yield event
            at += 16 + length


def values(workdir):
    return [(event.step, value) for event in events(workdir) for value in event.summary.value]


def test_an_image_is_a_png_of_its_step(tmp_path):
    from io import BytesIO

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    writer = MetricWriter(tmp_path, 0, {})
    writer.write_images(7, {"attention": pixels})
    writer.close()
    ((step, value),) = [(step, value) for step, value in values(tmp_path) if value.HasField("image")]
    assert (step, value.tag, value.image.height, value.image.width) == (7, "attention", 4, 6)
    with Image.open(BytesIO(value.image.encoded_image_string)) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_settings_are_hyper_parameters(tmp_path):
    settings = {"batch_size": 128, "method": "clip", "model.scan": False, "betas": (0.9, 0.98), "none": None}
    writer = MetricWriter(tmp_path, 0, settings)
    writer.close()
    plugins = [value.metadata.plugin_data for _, value in values(tmp_path)]
    assert [plugin.plugin_name for plugin in plugins] == ["hparams"] * 2
    start = HParamsPluginData.FromString(plugins[1].content).session_start_info.hparams
    assert start["batch_size"].number_value == 128 and start["method"].string_value == "clip"
    assert start["betas"].string_value == "(0.9, 0.98)" and "none" not in start
    assert start["model.scan"].HasField("bool_value") and not start["model.scan"].bool_value


def test_a_figure_becomes_an_array_of_its_size():
    pytest.importorskip("matplotlib")
    pixels = style.pixels(style.blank(2.0, 1.0))
    assert pixels.shape == (style.DPI, 2 * style.DPI, 3) and (pixels == 255).all()


@pytest.mark.parametrize("every, steps", [(0, []), (2, [2, 4, 6]), (5, [5])])
def test_images_come_every_n_steps(every, steps):
    draw = train.Action(every, lambda step, state: None)
    assert [step for step in range(1, 7) if draw.due(step, last=step == 6, stop=False)] == steps


# Weights & Biases


class Wandb:
    """A stand-in for the package: stores what it gets."""

    def __init__(self, error=None):
        self.error, self.opened, self.logged, self.finished = error, [], [], 0
        self.Settings = lambda **options: options
        self.Image = lambda pixels: ("image", pixels.shape)

    def init(self, **options):
        if self.error:
            raise self.error
        self.opened.append(options)
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    made = Wandb()
    monkeypatch.setattr(wandb_writer.importlib, "import_module", lambda name: made)
    return made


def test_a_run_opens_its_project_and_goes_on_there(wandb, tmp_path):
    config = run_config.load("tests/configs/smallest.py")
    config.logging.wandb = "detail"
    run = session.Run(config, tmp_path / "clip-1", None, None, Console(), pretraining.PRETRAINING)
    run.workdir.mkdir()
    for start in (0, 4):
        writer = session.open_writer(run, start)
        writer.write("metrics", start + 1, {"loss": 2.5})
        writer.write_images(start + 1, {"attention": np.zeros((4, 6, 3), np.uint8)})
        writer.close()
    first, second = wandb.opened
    assert first["project"] == "detail" and first["name"] == "clip-1" and first["dir"] == str(run.workdir)
    assert first["id"] == second["id"] and first["resume"] == "allow" and "mode" not in first
    assert first["config"]["batch_size"] == config.batch_size and first["config"]["logging.wandb"] == "detail"
    assert wandb.logged[:2] == [{"step": 1, "loss": 2.5}, {"step": 1, "attention": ("image", (4, 6, 3))}]
    assert wandb.finished == 2 and (run.workdir / "metrics.jsonl").read_text().count("\n") == 2


def test_without_a_project_the_package_is_not_imported(monkeypatch, tmp_path):
    monkeypatch.setattr(wandb_writer.importlib, "import_module", lambda name: pytest.fail("imported"))
    config = run_config.load("tests/configs/smallest.py")
    assert config.logging.wandb == ""
    run = session.Run(config, tmp_path, None, None, Console(), pretraining.PRETRAINING)
    session.open_writer(run, 0).close()


def test_a_missing_package_is_named_before_the_run(monkeypatch):
    monkeypatch.setattr(wandb_writer, "find_spec", lambda name: None)
    config = run_config.load("tests/configs/smallest.py")
    config = run_config.resolve(config, 1000)
    pretraining.validate(config)
    config.logging.wandb = "detail"
    with pytest.raises(ValueError, match=r"logging.wandb='detail' needs the package wandb: pip install"):
        pretraining.validate(config)


def test_a_service_that_cannot_be_opened_is_explained(wandb, tmp_path):
    wandb.error = RuntimeError("api_key not configured")
    with pytest.raises(WandbError, match="api_key not configured; log in with `wandb login`, set WANDB_MODE=offline"):
        WandbWriter("detail", tmp_path, {}, print)


def test_a_run_that_was_opened_before_goes_on_without_the_service(wandb, tmp_path):
    """A scheduler starts it again while the service is away."""
    WandbWriter("detail", tmp_path, {}, print).close()
    wandb.error, warnings = RuntimeError("no route to host"), []
    writer = WandbWriter("detail", tmp_path, {}, warnings.append)
    writer.write(1, {"loss": 1.0})
    writer.write_images(1, {"attention": np.zeros((4, 6, 3), np.uint8)})
    writer.close()
    assert len(warnings) == 1 and "no route to host" in warnings[0] and not wandb.logged


def test_trouble_with_the_service_stops_nothing(wandb, tmp_path, monkeypatch):
    warnings = []
    writer = WandbWriter("detail", tmp_path, {}, warnings.append)
    monkeypatch.setattr(wandb, "log", lambda values: 1 / 0)
    for step in (1, 2):
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert len(warnings) == 1 and "metrics.jsonl" in warnings[0] and wandb.finished == 0
