"""Numbers of a run: lines that a restart keeps, events, the finite check, and the progress line."""

import io
import itertools
import json

import pytest

from detailclip_jax.runtime.metric_files import (
    BrokenLine,
    MetricWriter,
    NonFiniteError,
    append_line,
    check_finite,
    drop_lines_after,
    read_lines,
    read_scores,
)
from detailclip_jax.runtime.progress import Clock, Console, Meter, duration, progress_line, three_digits

NAN, INF = float("nan"), float("inf")


def test_lines_hold_the_step_first_and_floats_exactly(tmp_path):
    file, third = tmp_path / "m.jsonl", 1 / 3
    append_line(file, 10, {"loss": third})
    assert file.read_text().startswith('{"step": 10, ')
    assert read_lines(file) == [{"step": 10, "loss": third}]


@pytest.mark.parametrize("step, kept", [(0, []), (20, [10, 20]), (25, [10, 20]), (99, [10, 20, 30])])
def test_lines_past_the_restored_step_go(tmp_path, step, kept):
    file = tmp_path / "m.jsonl"
    for logged in (10, 20, 30):
        append_line(file, logged, {"loss": 1.0})
    drop_lines_after(file, step)
    assert [line["step"] for line in read_lines(file)] == kept


def test_half_a_line_that_a_kill_left_goes_too(tmp_path):
    file = tmp_path / "m.jsonl"
    append_line(file, 10, {"loss": 1.0})
    with file.open("a") as lines:
        lines.write('{"step": 20, "lo')
    drop_lines_after(file, 20)
    append_line(file, 20, {"loss": 2.0})
    assert [line["step"] for line in read_lines(file)] == [10, 20]


def write_steps(workdir, start, steps):
    writer = MetricWriter(workdir, start, {})
    for step in steps:
        writer.write("metrics", step, {"loss": float(step)})
    writer.close()


def test_a_restart_writes_each_step_once(tmp_path):
    write_steps(tmp_path, 0, [1, 2, 3])
    write_steps(tmp_path, 1, [2, 3, 4])
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_files_that_are_not_the_run_s_own_are_left_alone(tmp_path):
    others = {"results.jsonl": '{"step": 600}\n', "prompts.jsonl": '{"text": "a frog"}'}
    for name, text in others.items():
        (tmp_path / name).write_text(text)
    write_steps(tmp_path, 300, [301])
    assert {name: (tmp_path / name).read_text() for name in others} == others


def test_an_evaluation_that_is_run_again_stands_once(tmp_path):
    writer = MetricWriter(tmp_path, 0, {})
    for top1 in (0.1, 0.2):
        writer.write_anew("evaluations", 600, {"top1": top1})
    writer.close()
    assert read_lines(tmp_path / "evaluations.jsonl") == [{"step": 600, "top1": 0.2}]


def test_tensorboard_gets_the_same_scalars(tmp_path):
    write_steps(tmp_path, 0, [7])
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    assert b"loss" in file.read_bytes()


def test_finite_metrics_pass():
    check_finite(1, {"loss": 1.0, "clip": -2.0}, ["clip"])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"loss": NAN, "clip": 4.0, "cls": NAN}, r"step 7: loss term cls is nan \(also not finite: loss\)"),
        ({"loss": INF, "clip": INF, "cls": 1.0}, r"step 7: loss term clip is inf \(also not finite: loss\)"),
        ({"loss": 1.0, "clip": 1.0, "grad_norm": NAN}, r"step 7: grad_norm is nan$"),
    ],
)
def test_what_is_not_finite_is_named(values, message):
    with pytest.raises(NonFiniteError, match=message):
        check_finite(7, values, ["clip", "cls"])


class Time:
    """A clock that is set by hand."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_clock_measures_speed_and_waiting_and_leaves_pauses_out():
    time = Time()
    clock = Clock(time)
    for lap in range(2):
        with clock.waiting():
            time.seconds += 1
        time.seconds += 3
        with clock.paused():
            time.seconds += 100 + lap
        speed = {"images_per_second": 20.0, "data_wait": 0.25}
        assert clock.speed(num_images=80) == clock.lap(num_images=80) == speed


def test_progress_line():
    values = {"loss": 9.1234, "clip": 4.21, "cls": 4.9134, "images_per_second": 128.0, "data_wait": 0.034}
    assert progress_line(120, 600, values, ["clip", "cls"], batch_size=128) == (
        "step 120/600 | eta 8:00 | 128 images/s | data wait 3% | loss 9.123 clip 4.210 cls 4.913"
    )


def test_progress_line_without_a_speed_has_no_eta():
    values = {"loss": 9.1234, "clip": 4.21}
    assert progress_line(1, 600, values, ["clip"], batch_size=128) == "step 1/600 | loss 9.123 clip 4.210"
    assert progress_line(1, 600, values, ["clip"], batch_size=128, width=30) == "1/600 loss 9.12 clip 4.21"


def test_progress_line_of_all_terms_fits_80_columns():
    terms = {"loss": 19.1234, "clip": 4.21, "cls": 4.9134, "patch": 5.0, "reconstruction": 0.5}
    values = terms | {"images_per_second": 128.0, "data_wait": 0.034}
    line = progress_line(120, 600, values, list(terms)[1:], batch_size=128, width=79)
    assert line == "120/600 eta 8:00 128/s wait 3% loss 19.1 clip 4.21 cls 4.91 patch 5.00 rec 0.500"[:79]
    longer = progress_line(120, 600_000, values, list(terms)[1:], batch_size=128, width=79)
    assert len(longer) <= 79 and longer.startswith("120/600000 eta 166:38:00 128/s wait 3% loss 19.1 clip")


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (61.4, "1:01"), (3599.6, "1:00:00"), (90_061, "25:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_console_rewrites_one_line_on_a_terminal():
    stream = Terminal()
    console = Console(stream=stream)
    console.live("step 1")
    console.live("step 2")
    console.say("saved")
    assert stream.getvalue() == "\r\x1b[Kstep 1\r\x1b[Kstep 2\r\x1b[Ksaved\n"


def test_console_writes_plain_lines_elsewhere():
    stream = io.StringIO()
    console = Console(stream=stream)
    console.live("step 1")
    console.warn("odd")
    console.end_live()
    assert stream.getvalue() == "step 1\n*** WARNING: odd\n"


def test_other_processes_are_silent():
    stream = io.StringIO()
    Console(enabled=False, stream=stream).say("hello")
    assert stream.getvalue() == ""


def test_metric_values_with_attributes_are_plain_numbers_in_json(tmp_path):
    class Metric(float):
        chance = 0.1

    append_line(tmp_path / "m.jsonl", 1, {"top1": Metric(0.5)})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "top1": 0.5}


class Screen(Console):
    """A console that remembers."""

    width = None

    def __init__(self, width):
        self.width, self.lines = width, []

    def live(self, text):
        self.lines.append(text)


def test_the_meter_leaves_the_first_part_out_of_its_rate():
    seconds = iter([10.0, 10.0, 10.0, 12.0, 12.0, 12.0, 13.0, 13.0, 13.0, 13.0])
    screen = Screen(80)
    meter = Meter(screen, "images", 5000, now=lambda: next(seconds))
    meter.add(64)
    meter.add(420)
    meter.add(1216, "3 unreadable")
    assert screen.lines == [
        "64/5,000 images",
        "484/5,000 images | 210 images/s | eta 0:22",
        "1,700/5,000 images | 545 images/s | eta 0:06 | 3 unreadable",
    ]


def test_the_meter_is_quiet_where_there_is_no_terminal():
    clock = itertools.count(0.0, 0.25)
    screen = Screen(None)
    meter = Meter(screen, "images", 100, now=lambda: next(clock))
    for _ in range(100):
        meter.add(1)
    assert 3 <= len(screen.lines) <= 10 and screen.lines[-1].startswith("100/100 images")


def test_the_meter_has_a_title_where_it_is_given_and_never_counts_past_the_end():
    screen = Screen(80)
    meter = Meter(screen, "images", 10, "knn:pets ema", now=lambda: 0.0)
    meter.add(8)
    meter.add(8)
    assert screen.lines[0] == "knn:pets ema | 8/10 images" and " | 10/10 images | " in screen.lines[1]


@pytest.mark.parametrize(
    "number, shown",
    [(487_213.4, "487,000"), (999.6, "1,000"), (545.4, "545"), (12.34, "12.3"), (8.249, "8.25"), (0.01234, "0.0123")],
)
def test_rates_have_three_digits(number, shown):
    assert three_digits(number) == shown


@pytest.mark.parametrize("broken", ["{", "\x00\x00", "[]", "7", '{"loss": 1}', '{"step": "x"}'])
def test_a_damaged_line_is_left_out_and_named(tmp_path, broken):
    file, warnings = tmp_path / "metrics.jsonl", []
    file.write_text(f'{{"step": 1}}\n{broken}\n{{"step": 3}}\n{{"step": 4}}\n')
    with pytest.raises(BrokenLine, match=rf"{file}: line 2 is not a JSON object with a step"):
        read_lines(file)
    MetricWriter(tmp_path, 3, {}, warnings.append).close()
    assert read_lines(file) == [{"step": 1}, {"step": 3}]
    assert len(warnings) == 1 and warnings[0].startswith(f"{file}: 1 damaged lines are removed (line 2)")


def test_scores_are_read_by_step_and_damaged_lines_passed_over(tmp_path):
    assert read_scores(tmp_path) == {}
    (tmp_path / "evaluations.jsonl").write_text('{"step": 4, "a/top1": 0.5}\nnot json\n{"step": 8, "a/t')
    assert read_scores(tmp_path) == {4: {"a/top1": 0.5}}
