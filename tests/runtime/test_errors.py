"""Errors of commands as messages and exit codes, and the parser that all commands share."""

import logging as python_logging
import re

import pytest
from absl import logging

from detailclip_jax import __main__ as door
from detailclip_jax import compare, embed, evaluate, export, import_torch, prepare, visualize
from detailclip_jax.interop import formats
from detailclip_jax.interop.state_dicts import NAMES, OTHER_NAMES
from detailclip_jax.runtime import errors, parser
from detailclip_jax.runtime.processes import launched_as_several
from detailclip_jax.training.checkpoint import CheckpointError
from detailclip_jax.transfer import predict_parser


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no such field"), 2, "error: no such field\n"),
        (FileNotFoundError("no config"), 2, "error: no config\n"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), 2, "error: No such file or directory: x.txt\n"),
        (PermissionError(13, "Permission denied", "/runs"), 1, "error: Permission denied: /runs; shards stay\n"),
        (ModuleNotFoundError("needs pyarrow"), 2, "error: needs pyarrow\n"),
        (CheckpointError("step 3 is damaged"), 1, "error: step 3 is damaged\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; shards stay\n"),
        (SystemExit(3), 3, ""),
        (SystemExit(), 0, ""),
        (SystemExit("text"), 1, "text\n"),
    ],
)
def test_every_error_of_the_table_is_one_message_and_a_code(capsys, error, code, said):
    assert errors.run(raising(error), kept="shards stay") == code
    assert capsys.readouterr().err == said


def test_the_first_line_of_an_error_says_its_class():
    assert errors.first_line(ValueError("\nno such size\nknown: B/16")) == "ValueError: no such size"
    assert errors.first_line(AssertionError()) == "AssertionError"
    assert errors.first_line(ValueError(" \n ")) == "ValueError"
    assert errors.first_line(OSError("x" * 500)) == f"OSError: {'x' * 200}"


def test_a_fault_of_the_program_keeps_its_traceback(capsys):
    with pytest.raises(ZeroDivisionError):
        errors.run(raising(ZeroDivisionError()))
    assert errors.status(ZeroDivisionError("here")) == 1
    assert "ZeroDivisionError: here" in capsys.readouterr().err


def test_at_work_a_value_error_is_a_fault_and_a_run_error_is_not(capsys):
    def work(error):
        with errors.at_work():
            raise error

    with pytest.raises(ValueError, match="shapes differ"):
        errors.run(lambda: work(ValueError("shapes differ")))
    assert not capsys.readouterr().err
    assert errors.run(lambda: work(errors.RunError("loss is not finite"))) == 1
    assert capsys.readouterr().err == "error: loss is not finite\n"


def test_notes_of_an_error_at_work_are_said(capsys):
    error = errors.RunError("loss is not finite")
    error.add_note("what was measured is kept")

    def work():
        raise error

    assert errors.run(work) == 1
    assert capsys.readouterr().err == "error: loss is not finite; what was measured is kept\n"


def test_a_command_logs_warnings_only_as_its_console_prints_them(capsys, monkeypatch):
    before = logging.get_verbosity()
    monkeypatch.setattr(python_logging.root, "handlers", [])
    try:
        assert errors.run(lambda: logging.warning("one set of weights") or 5) == 5
        assert logging.get_verbosity() == logging.WARNING
        assert capsys.readouterr().err == "*** WARNING: one set of weights\n"
    finally:
        logging.set_verbosity(before)


def made_parser():
    made = parser.parser("embed", "Embeds.")
    made.add_argument("--checkpoint", required=True)
    made.add_argument("--batch-size", type=parser.positive, default=4)
    made.add_argument("--crop-ratio", type=float)
    made.add_argument("--to", type=parser.one_of("format", ("timm", "onnx")))
    return made


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--chekpoint=x"], "unknown flag --chekpoint; did you mean '--checkpoint'?"),
        (["--checkpoint=x", "--batch_size=4"], "unknown flag --batch_size; did you mean '--batch-size'?"),
        (["--checkpoint=x", "--batch=4"], "unknown flag --batch"),  # no abbreviations
        (["--checkpoint=x", "--nothing-like-it"], "unknown flag --nothing-like-it ("),
        (["--checkpoint=x", "--to=onx"], "unknown format 'onx'; did you mean 'onnx'? Known: timm, onnx"),
        (["--checkpoint=x", "--batch-size=0"], "'0' must be a whole number of at least 1"),
        (["--checkpoint=x", "--batch-size=1.5"], "'1.5' must be a whole number of at least 1"),
        ([], "the following arguments are required: --checkpoint"),
    ],
)
def test_mistakes_in_flags_are_one_message(capsys, argv, said):
    with pytest.raises(SystemExit, match="2"):
        made_parser().parse_args(argv)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and len(error.splitlines()) == 1


def refused(command, argv, capsys):
    assert command.main(argv) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("hf", "huggingface"),
        ("HF", "huggingface"),
        ("transformers", "huggingface"),
        ("hugging_face", "huggingface"),
        ("openclip", "open_clip"),
        ("open-clip", "open_clip"),
        ("torch", "timm"),
        ("pytorch", "open_clip"),
        ("pth", "open_clip"),
        ("backbone", "timm"),
        ("safetensor", "safetensors"),
        ("hlo", "stablehlo"),
    ],
)
def test_a_plausible_name_of_a_format_is_answered_with_the_right_one(capsys, written, meant):
    message = refused(export, ["--checkpoint=x", f"--to={written}", "--out=y"], capsys)
    assert repr(meant) in message.partition("did you mean")[2].partition("?")[0]


def test_a_layout_to_import_is_answered_too_and_a_suggestion_is_always_a_known_name(capsys):
    message = refused(import_torch, ["x.pt", "--from=hf", "--out=y"], capsys)
    assert "did you mean 'huggingface'?" in message
    for names in (formats.FORMATS, NAMES):
        for word in OTHER_NAMES:
            assert word in names or "did you mean" in errors.unknown("format", word, names, OTHER_NAMES)
            assert {*OTHER_NAMES[word]} <= {*formats.FORMATS, *NAMES}


def test_negative_numbers_and_what_follows_two_dashes_are_no_flags():
    assert made_parser().parse_args(["--checkpoint", "x", "--crop-ratio", "-1.5"]).crop_ratio == -1.5
    made = parser.parser("prepare", "")
    made.add_argument("paths", nargs="*")
    assert made.parse_args(["a", "--", "--b"]).paths == ["a", "--b"]


@pytest.mark.parametrize("started_as", ["/somewhere/detailclip_jax/embed.py", "/venv/bin/detailclip"])
def test_usage_names_the_module_however_the_command_was_started(monkeypatch, started_as):
    monkeypatch.setattr("sys.argv", [started_as])
    assert made_parser().format_usage().startswith("usage: python -m detailclip_jax.embed ")


@pytest.mark.parametrize(
    ("made", "old", "new"), [(visualize.parser, "--texts", "--text"), (predict_parser, "--workdir", "--checkpoint")]
)
def test_an_old_spelling_is_refused_with_the_new_one(capsys, made, old, new):
    for given in ([f"{old}=x"], [old, "x"]):
        with pytest.raises(SystemExit, match="2"):
            made().parse_args(given)
        assert f"error: {old} is {new} here (" in capsys.readouterr().err


@pytest.mark.parametrize("module", [compare, embed, evaluate, export, import_torch, prepare, visualize])
def test_a_folder_is_dir_and_a_file_is_file_in_every_help(module):
    assert not re.search(r"\b(FOLDER|PATH|ROOT|LIST|PNG|WORKDIR)\b", module.parser().format_usage())


@pytest.mark.parametrize(
    ("script", "shown"), [("/venv/bin/detailclip", "detailclip"), ("/x/__main__.py", "python -m detailclip_jax")]
)
def test_the_list_of_commands_shows_how_it_was_started(monkeypatch, script, shown):
    monkeypatch.setattr("sys.argv", [script])
    assert door.usage().startswith(f"usage: {shown} COMMAND")


@pytest.mark.parametrize(
    ("name", "said"), [("trian", "did you mean 'train'"), ("--versoin", "did you mean '--version'")]
)
def test_an_unknown_command_or_flag_of_the_list_is_answered_with_the_nearest(capsys, name, said):
    assert door.main([name]) == errors.USAGE_ERROR
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("value", ["many", "", "2x"])
def test_a_launcher_s_count_that_is_no_number_is_a_message(value):
    with pytest.raises(ValueError, match=r"SLURM_STEP_NUM_TASKS=.* is not a number of processes; unset it"):
        launched_as_several({"SLURM_STEP_NUM_TASKS": value})
    assert launched_as_several({"SLURM_STEP_NUM_TASKS": "2"}) and not launched_as_several({})
