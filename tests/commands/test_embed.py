"""Folders of images to files of embeddings and back: what is kept, what is refused, what is found."""

import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from detailclip_jax import embed
from detailclip_jax.data.image_files import ImageFileBatches, ImageFiles, find
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.figures import contact_sheet
from detailclip_jax.inference import embed_folder, embeddings
from detailclip_jax.inference import model as inference
from detailclip_jax.inference.embeddings import Key, Origin, Table
from detailclip_jax.runtime import errors
from detailclip_jax.runtime.locks import alone
from detailclip_jax.training import checkpoint, experiment
from detailclip_jax.training.mesh import make_mesh

NAMES = ("a/1.png", "a/2.JPG", "b b/3.png", "b b/deep/4.webp", "five [5].png", "six.gif", "seven.bmp")
BAD = ("cut.png", "empty.jpg")


@functools.cache
def noise(method="clip", seed=0):
    """(variables, config) of a tiny row, every parameter noise, with CLIP's own vocabulary."""
    config = tiny.tiny_config(method)
    config.model.vocab_size = 49408
    built = experiment.build(config, make_mesh(jax.devices()[:1]))
    rng, shapes = np.random.default_rng(seed), built.state_shapes
    make = functools.partial(jax.tree.map, lambda x: jax.device_put(np.asarray(rng.normal(0, 0.2, x.shape), x.dtype)))
    params = make(shapes.params)
    return built.model, {"params": params, "ema_params": {}, "batch_stats": make(shapes.batch_stats)}, config


@functools.cache
def model_of(path="runs/clip", method="clip", seed=0):
    networks, variables, config = noise(method, seed)
    return inference.Model(networks, variables, config, variables["params"], "student", 3, path)


@pytest.fixture(autouse=True)
def loaded(monkeypatch, request):
    """Workdirs by name, without the seconds that reading one takes; small batches; a folder to work in."""
    if "workdir" in request.fixturenames:
        return
    models = {"runs/clip": ("clip", 0), "runs/other": ("clip", 1), "runs/mae": ("mae", 0)}
    monkeypatch.setattr(
        inference, "load", lambda path, weights=None, step=None: model_of(str(path), *models[str(path)])
    )
    monkeypatch.setattr(embed_folder, "BATCH_SIZE", 2)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working directory with a folder of seven images, two unreadable ones, and what is no image."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + number, 50, 3), np.uint8)).save(file)
    whole = (tmp_path / "photos/a/1.png").read_bytes()
    (tmp_path / "photos/cut.png").write_bytes(whole[:500])
    (tmp_path / "photos/empty.jpg").touch()
    (tmp_path / "photos/notes.txt").write_text("no image")
    (tmp_path / "photos/.hidden.png").write_bytes(whole)
    return tmp_path / "photos"


def run(*arguments, checkpoint="runs/clip"):
    return embed.main([f"--checkpoint={checkpoint}", *arguments])


def npz(file="out.npz"):
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files} | {"name": arrays["name"].tolist()}


def rows_of(file="out.npz", kind="image"):
    columns = npz(file)
    return {n: e for n, k, e in zip(columns["name"], columns["kind"], columns["embedding"]) if k == kind}


def assert_rows(rows, names):
    assert list(rows) == sorted(names)
    expected = model_of().encode_image([f"photos/{name}" for name in rows])
    np.testing.assert_allclose(np.stack(list(rows.values())), expected, atol=2e-6)


def test_a_folder_becomes_a_file_that_numpy_reads(photos, capsys):
    assert run("--images=photos", "--out=made/out.npz") == 0
    assert_rows(rows_of("made/out.npz"), NAMES)
    assert npz("made/out.npz")["embedding"].dtype == np.float32
    shown = capsys.readouterr().err
    assert "*** WARNING: 2 unreadable images are skipped:" in shown
    assert "  cut.png: truncated or damaged" in shown and "  empty.jpg: empty: 0 bytes" in shown
    assert "9/9 images" in shown and "written to made/out.npz; images: 7, texts: 0" in shown
    assert not list(Path("made").glob("*partial*"))


@pytest.mark.check
def test_a_workdir_through_the_real_command(photos, tmp_path_factory, workdir):
    command = [sys.executable, "-m", "detailclip_jax.embed", f"--checkpoint={workdir}", "--images=photos/a"]
    options = {"env": {**os.environ, "PYTHONPATH": str(Path(embed.__file__).parents[1])}, "check": True}
    done = subprocess.run([*command, "--query=a frog", "--top=1"], capture_output=True, text=True, **options)
    best, drawn = done.stdout.splitlines()
    expected = model_of().encode_image(["photos/a/1.png", "photos/a/2.JPG"]) @ model_of().encode_text(["a frog"])[0]
    assert best.split() == ["1", f"{expected.max():.3f}", ("1.png", "2.JPG")[expected.argmax()]]
    assert drawn.startswith("not drawn; --sheet") and not list(Path().glob("*.png"))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    _, variables, config = noise()
    path = tmp_path_factory.mktemp("runs") / "clip"
    checkpoint.save_weights(path, variables, config, "noise")
    return path


def test_parquet_holds_the_same(photos):
    parquet = pytest.importorskip("pyarrow.parquet")
    for file in ("out.npz", "out.parquet"):
        assert run("--images=photos", "--text=a frog", f"--out={file}") == 0
    table, columns = parquet.read_table("out.parquet"), npz()
    assert table["name"].to_pylist() == columns["name"] and table["kind"].to_pylist()[-1] == "text"
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), columns["embedding"])
    first, second = (embeddings.read(Path(file)) for file in ("out.npz", "out.parquet"))
    assert first.origin == second.origin and list(first.rows) == list(second.rows)
    assert run("--from=out.parquet", "--query=a frog") == 0


def test_without_pyarrow_the_way_out_is_named(photos, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(inference, "load", lambda *_: pytest.fail("told too late"))
    assert run("--images=photos", "--out=out.parquet") == errors.USAGE_ERROR
    assert "pip install 'detailclip_jax[data]', or choose a name that ends in .npz" in capsys.readouterr().err


def test_an_empty_table_and_odd_names_survive(tmp_path):
    pytest.importorskip("pyarrow")
    origin = Origin("runs/clip", 3, "ema", "0123456789ab", "/photos")
    rows = {
        Key("image", "ünïcode 雪.png", 7): np.ones(4, np.float32),
        Key("text", 'a "frog",\n', 0): np.zeros(4, np.float32),
    }
    for table, suffix in itertools.product((Table(origin, {}), Table(origin, rows)), embeddings.FORMATS):
        embeddings.write(tmp_path / f"t{suffix}", table)
        read = embeddings.read(tmp_path / f"t{suffix}")
        assert read.origin == origin and list(read.rows) == list(table.rows)
        for key, row in table.rows.items():
            np.testing.assert_array_equal(read.rows[key], row)


def test_one_long_text_does_not_make_every_row_as_long(tmp_path):
    keys = [Key("text", "x" * 100_000), *(Key("image", f"{number}.png") for number in range(1000))]
    table = Table(Origin("runs/clip", 3, "ema", "0123456789ab"), dict.fromkeys(keys, np.ones(4, np.float32)))
    embeddings.write(tmp_path / "t.npz", table)
    assert (tmp_path / "t.npz").stat().st_size < 200_000  # 400 MB in numpy's strings
    assert list(embeddings.read(tmp_path / "t.npz").rows) == keys
    with np.load(tmp_path / "t.npz") as arrays:
        assert arrays["name"].dtype.kind == "U" and arrays["name"][:2].tolist() == ["x" * 250, "0.png"]


def test_names_are_strings_for_numpy_and_pandas(tmp_path):
    names = ["ü.png", "b b/“two”.png", "a frog"]
    keys = [Key("image", names[0], 7), Key("image", names[1], 8), Key("text", names[2])]
    table = Table(Origin("runs/clip", 3, "ema", "0123456789ab"), dict.fromkeys(keys, np.ones(4, np.float32)))
    embeddings.write(tmp_path / "t.npz", table)
    with np.load(tmp_path / "t.npz") as arrays:
        assert arrays["name"].tolist() == names and arrays["kind"].tolist() == ["image", "image", "text"]
    parquet = pytest.importorskip("pyarrow.parquet")
    embeddings.write(tmp_path / "t.parquet", table)
    assert str(parquet.read_table(tmp_path / "t.parquet").schema.field("name").type) == "string"


# search


def test_a_query_finds_the_highest_cosines_and_draws_them(photos, capsys):
    assert run("--images=photos", "--out=out.npz", "--query=Two red kites!", "--top=3") == 0
    rows = rows_of()
    cosines = {name: float(row @ model_of().encode_text(["Two red kites!"])[0]) for name, row in rows.items()}
    best = sorted(cosines, key=cosines.get, reverse=True)[:3]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"{rank:>4}  {cosines[name]:6.3f}  {name}" for rank, name in enumerate(best, 1)]
    assert lines[3:] == ["drawn in out-two-red-kites.png"]
    with Image.open("out-two-red-kites.png") as sheet:
        assert sheet.size == (4 * 160 + 5 * 12, 3 * 12 + 17 + 160 + 2 * 17 + 12)


def test_searching_a_file_embeds_no_image(photos, monkeypatch, capsys):
    assert run("--images=photos", "--out=out.npz") == 0
    monkeypatch.setattr(embed_folder, "embed_images", lambda *_: pytest.fail("embedded again"))
    photos.rename("moved")
    drawn = []
    monkeypatch.setattr(contact_sheet, "draw", lambda _, tiles: drawn.append(tiles) or Image.new("RGB", (1, 1)))
    assert run("--from=out.npz", "--query=a frog", "--sheet=here/sheet.png") == 0
    assert run("--from=out.npz", "--query=a frog", "--images=moved") == 0
    assert [[tile.image is None for tile in tiles] for tiles in drawn] == [[True] * 7, [False] * 7]
    assert Path("here/sheet.png").exists() and Path("out-a-frog.png").exists()
    assert run("--from=out.npz", "--query=a frog", checkpoint="runs/other") == errors.USAGE_ERROR
    error = capsys.readouterr().err
    assert (
        "out.npz was computed with another model or preprocessing (runs/clip, step 3, student weights) than this one "
        "(runs/other" in error
    )


def test_texts_alone_cannot_be_searched(photos, capsys):
    assert run("--text=a frog", "--out=out.npz") == 0
    assert run("--from=out.npz", "--query=a frog") == errors.USAGE_ERROR
    assert "out.npz has embeddings of texts only, no images to search" in capsys.readouterr().err


def test_the_sheet_shows_images_and_cuts_long_lines_at_their_beginning():
    image = np.full((160, 160, 3), (200, 10, 10), np.uint8)
    tiles = [contact_sheet.Tile(image, "1   0.744", "x" * 99 + "/frog.png"), contact_sheet.Tile(None, "2", "gone")]
    sheet = np.asarray(contact_sheet.draw("a frog", tiles))
    top, left = 2 * 12 + 17, 12
    np.testing.assert_array_equal(sheet[top : top + 160, left : left + 160], image)
    assert (sheet[top : top + 160, left + 172 : left + 332] == 0xE0).all()
    assert (sheet[top + 162 : top + 179, left : left + 160] < 128).any(), "a line stands below the image"
    cut = contact_sheet.cut(tiles[0].small, 11, 160)
    assert cut.startswith("...") and cut.endswith("/frog.png") and 20 < len(cut) < 60
    assert contact_sheet.cut("short", 11, 160) == "short"


def test_every_letter_of_a_line_is_seen(monkeypatch):
    """Pillow's own font draws a question mark for letters that it does not have."""
    line = "“it\u2019s” \u2013 ß Ж"
    assert contact_sheet.cut(line, 13, 400) == line
    assert len({contact_sheet._drawn(letter) for letter in (*line, "\U0010ffff")}) == len({*line}) + 1
    assert contact_sheet.cut("中.png", 13, 400) == r"\u4e2d.png"
    monkeypatch.setattr(contact_sheet.importlib.util, "find_spec", lambda _: None)  # without matplotlib
    for function in (contact_sheet._font, contact_sheet._has_glyph):
        function.cache_clear()
    assert contact_sheet.cut("a \u2013 b", 13, 400) == r"a \u2013 b"
    for function in (contact_sheet._font, contact_sheet._has_glyph):
        function.cache_clear()


# what is there is kept


def embedded(monkeypatch):
    """Names of the images that are embedded from here on."""
    names, real = [], embed_folder.embed_images

    def watched(model, found, keys):
        names.extend(key.name for key in keys)
        return real(model, found, keys)

    monkeypatch.setattr(embed_folder, "embed_images", watched)
    return names


def test_only_what_is_new_or_changed_is_embedded(photos, monkeypatch, capsys):
    shutil.rmtree(photos / "b b")
    for name in BAD:
        (photos / name).unlink()
    assert run("--images=photos", "--text=a frog", "--out=out.npz") == 0
    names = embedded(monkeypatch)
    assert run("--images=photos", "--out=out.npz") == 0
    assert names == [] and "out.npz is up to date; images: 5, texts: 1" in capsys.readouterr().err
    Image.new("RGB", (9, 9), "red").save(photos / "new.png")
    Image.new("RGB", (9, 9), "blue").save(photos / "six.gif")
    os.utime(photos / "six.gif", ns=(1, 1))
    (photos / "seven.bmp").unlink()
    assert run("--images=photos", "--text=a bus", "--out=out.npz") == 0
    assert names == ["new.png", "six.gif"]
    assert_rows(rows_of(), ["a/1.png", "a/2.JPG", "five [5].png", "new.png", "six.gif"])
    assert list(rows_of(kind="text")) == ["a frog", "a bus"]
    assert run("--text=a cat", "--out=out.npz") == 0
    assert len(rows_of()) == 5 and len(rows_of(kind="text")) == 3
    os.utime(photos / "new.png", ns=(1, 1))
    assert run(f"--images={photos / 'six.gif'}", "--out=out.npz") == 0  # the others are in the same folder
    assert names == ["new.png", "six.gif"]
    assert_rows(rows_of(), ["a/1.png", "a/2.JPG", "five [5].png", "six.gif"])


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_embedded(photos, monkeypatch, capsys, signal_number):
    shown = embed_folder.Meter.add

    def add(meter, count, *notes):
        shown(meter, count, *notes)
        os.kill(os.getpid(), signal_number)
        time.sleep(0.2)  # another thread may receive it first

    with monkeypatch.context() as patch:
        patch.setattr(embed_folder.Meter, "add", add)
        assert run("--images=photos", "--text=a frog", "--out=out.npz", "--query=a frog") == 128 + signal_number
    assert not Path("out.npz").exists()
    assert list(rows_of("out.partial.npz")) == ["a/1.png", "a/2.JPG"] and not rows_of("out.partial.npz", "text")
    printed = capsys.readouterr()
    assert "interrupted: 2 of 10 are embedded, saved in out.partial.npz" in printed.err and not printed.out
    names = embedded(monkeypatch)
    assert run("--images=photos", "--text=a frog", "--out=out.npz") == 0
    assert names == sorted([*NAMES[2:], *BAD])
    assert_rows(rows_of(), NAMES)
    assert list(rows_of(kind="text")) == ["a frog"] and not Path("out.partial.npz").exists()


def test_without_out_an_interrupt_says_that_nothing_is_kept(photos, monkeypatch, capsys):
    def add(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)  # another thread may receive it first

    monkeypatch.setattr(embed_folder.Meter, "add", add)
    assert run("--images=photos", "--query=a frog") == 130
    assert "interrupted; nothing is saved without --out" in capsys.readouterr().err


def test_a_kill_loses_only_the_last_minutes(photos, monkeypatch):
    monkeypatch.setattr(embed_folder, "SAVE_EVERY", 0.0)
    adds = itertools.count(1)

    def add(*_):
        if next(adds) == 3:
            raise KeyboardInterrupt  # as a second Ctrl-C: nothing is saved any more

    monkeypatch.setattr(embed_folder.Meter, "add", add)
    assert run("--images=photos", "--out=out.npz") == errors.INTERRUPTED
    assert list(rows_of("out.partial.npz")) == ["a/1.png", "a/2.JPG", "b b/3.png", "b b/deep/4.webp"]


@pytest.mark.parametrize("file", ["out.npz", "out.partial.npz"])
def test_another_model_s_file_is_not_overwritten(photos, capsys, file):
    assert run("--images=photos", "--out=made.npz") == 0
    before = Path("made.npz").rename(file).read_bytes()
    assert run("--images=photos", "--out=out.npz", checkpoint="runs/other") == errors.USAGE_ERROR
    message = (
        f"{file} was computed with another model or preprocessing (runs/clip, step 3, student weights) than this one "
        "(runs/other, step 3"
    )
    error = capsys.readouterr().err
    assert message in error and "choose another --out, or delete it" in error
    assert Path(file).read_bytes() == before


def test_a_file_that_another_call_writes_is_left_to_it(photos, capsys):
    """Each of two calls read FILE at its start and wrote its own rows over the other's."""
    with alone(embed.lock_of(Path("out.npz"))):
        assert run("--images=photos", "--out=out.npz") == errors.RUN_ERROR
    assert "is writing to out.npz; wait" in capsys.readouterr().err and not Path("out.npz").exists()
    assert run("--images=photos", "--out=out.npz") == 0
    assert not embed.lock_of(Path("out.npz")).exists()


def test_a_file_is_of_one_folder(photos, capsys):
    assert run("--images=photos", "--out=out.npz") == 0
    before = Path("out.npz").read_bytes()
    assert run("--images=photos/a", "--out=out.npz") == errors.USAGE_ERROR
    assert f"out.npz contains images of {photos}, not of {photos / 'a'}; choose another" in capsys.readouterr().err
    assert Path("out.npz").read_bytes() == before


def test_a_damaged_checkpoint_is_one_message(photos, workdir, tmp_path, capsys):
    shutil.copytree(workdir, tmp_path / "damaged")
    for file in (tmp_path / "damaged/checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert embed.main([f"--checkpoint={tmp_path / 'damaged'}", "--images=photos", "--out=out.npz"]) == errors.RUN_ERROR
    assert "error: the checkpoint of step" in capsys.readouterr().err


def test_a_file_of_another_kind_is_no_checkpoint(photos, workdir, capsys):
    Path("clip.pt").write_bytes(b"weights")
    assert embed.main(["--checkpoint=clip.pt", "--images=photos", "--out=out.npz"]) == errors.USAGE_ERROR
    assert "error: clip.pt is neither a PyTorch file nor a safetensors file" in capsys.readouterr().err


def test_a_foreign_file_is_not_overwritten(photos, capsys):
    np.savez("out.npz", mine=np.ones(3))
    before = Path("out.npz").read_bytes()
    for arguments in (["--images=photos", "--out=out.npz"], ["--from=out.npz", "--query=a frog"]):
        assert run(*arguments) == errors.USAGE_ERROR
        assert "out.npz is not a file of embeddings of this package, or is damaged (KeyError" in capsys.readouterr().err
    assert Path("out.npz").read_bytes() == before


# mistakes


def test_nothing_readable_is_a_failure(photos, capsys):
    for name in NAMES:
        (photos / name).unlink()
    assert run("--images=photos", "--out=out.npz") == errors.RUN_ERROR
    assert "error: none of the 2 images is readable" in capsys.readouterr().err
    assert not Path("out.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=out.npz"], "give --images, --texts or --text, or --from=FILE"),
        (["--images=photos"], "give --out=FILE to keep embeddings, or --query=TEXT"),
        (["--from=a.npz", "--query=x", "--out=b.npz"], "--from=FILE is searched, not written"),
        (["--text=a", "--query=x"], "--query searches images: give --images or --from"),
        (["--images=photos", "--query=x", "--top=0"], "argument --top: '0' must be a whole number of at least 1"),
        (["--images=photos", "--query=x", "--sheet=x.jpg"], "--sheet=x.jpg must end in .png"),
        (
            ["--images=photos", "--out=x.npz", "--sheet=x.png"],
            "--sheet draws the images that --query finds",
        ),
        (["--images=photos", "--out=out.csv"], "out.csv must end in .npz or .parquet"),
        (["--images=phots", "--out=out.npz"], "there is no folder or file 'phots'"),
        (["--images=phots/*.png", "--out=out.npz"], "there is no folder or file 'phots/*.png'"),
        (
            ["--images=photos/*.tga", "--out=out.npz"],
            "there are no images in 'photos/*.tga'; looked for files that match",
        ),
        (["--images=empty", "--out=out.npz"], "there are no images in 'empty'; looked for files that end in .jpg"),
        (["--text= ", "--out=out.npz"], "nothing to embed: every text of --texts and --text is blank"),
        (["--texts=lines.txt", "--out=out.npz"], "No such file or directory: lines.txt"),
        (["--from=nothing.npz", "--query=x"], "the file nothing.npz does not exist"),
    ],
)
def test_mistakes_are_messages(photos, capsys, monkeypatch, arguments, message):
    Path("empty").mkdir()
    monkeypatch.setattr(inference, "load", lambda *_: pytest.fail("told too late"))
    assert run(*arguments) == errors.USAGE_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_a_folder_that_takes_no_files_is_told_before_anything_is_embedded(photos, capsys, monkeypatch):
    def refused(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    monkeypatch.setattr(inference, "load", lambda *_: pytest.fail("told too late"))
    assert run("--images=photos", "--out=deep/out.npz") == errors.RUN_ERROR
    assert "error: Permission denied: deep" in capsys.readouterr().err


def test_a_row_without_the_tower_is_told_before_anything_is_embedded(photos, capsys):
    assert run("--images=photos", "--query=a frog", checkpoint="runs/mae") == errors.USAGE_ERROR
    said = capsys.readouterr().err
    assert "the method of runs/mae is mae, which has no text and no text_projection; it embeds images only" in said
    assert "embed --images); use a checkpoint of a method with captions, such as clip or detailclip" in said


def test_a_folder_is_embedded_by_an_image_encoder_alone(photos, capsys):
    """Its class feature, L2-normalised, by the preprocessing that the screen names."""
    assert run("--images=photos", "--out=out.npz", checkpoint="runs/mae") == 0
    said = capsys.readouterr().err
    assert "preprocess: shorter side to 32 px (bilinear), center crop 32 px, mean 0.485" in said
    assert "no joint space with texts: an embedding is the L2-normalised class feature" in said
    names, rows = embeddings.read(Path("out.npz")).of(embeddings.IMAGE)
    model = model_of("runs/mae", "mae", 0)
    cls = model.features([photos / name for name in names]).cls
    np.testing.assert_allclose(rows, cls / np.linalg.norm(cls, axis=1, keepdims=True), atol=2e-6)


def test_flags_override_how_images_are_made(photos, capsys):
    """And a file of the other way is another model's."""
    assert run("--images=photos", "--out=out.npz", "--resize-filter=bicubic", "--crop-ratio=.8") == 0
    assert "preprocess: shorter side to 40 px (bicubic), center crop 32 px" in capsys.readouterr().err
    names, rows = embeddings.read(Path("out.npz")).of(embeddings.IMAGE)
    cubic = model_of("runs/clip", "clip", 0).preprocessed({"filter": "bicubic", "crop_ratio": 0.8})
    np.testing.assert_allclose(rows, cubic.encode_image([photos / name for name in names]), atol=2e-6)
    assert run("--images=photos", "--out=out.npz") == errors.USAGE_ERROR
    assert "out.npz was computed with another model" in capsys.readouterr().err


def test_help_does_not_wait_for_jax():
    code = "import sys, detailclip_jax.embed; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# pieces


@pytest.mark.parametrize(
    ("where", "root", "names"),
    [
        ("photos", "photos", sorted([*NAMES, *BAD])),
        ("photos/", "photos", sorted([*NAMES, *BAD])),
        ("photos/*.png", "photos", ["cut.png", "five [5].png"]),
        ("photos/**/*.webp", "photos", ["b b/deep/4.webp"]),
        ("photos/b*/*.png", "photos", ["b b/3.png"]),
        ("photos/a/?.*", "photos/a", ["1.png", "2.JPG"]),
        ("photos/five [5].png", "photos", ["five [5].png"]),
        ("photos/*", "photos", sorted(["cut.png", "empty.jpg", "five [5].png", "notes.txt", "seven.bmp", "six.gif"])),
    ],
)
def test_images_are_found(photos, where, root, names):
    found = find(where)
    assert (found.root, found.names, found.left_out) == (Path(root), tuple(names), ())


def test_files_in_other_formats_are_counted(photos, capsys):
    for name in ("x.heic", "y.HEIC", "z.avif", "w.jfif"):
        (photos / name).write_bytes((photos / "a/2.JPG").read_bytes())
    assert run("--images=photos", "--out=out.npz") == 0
    shown = capsys.readouterr().err
    assert "left out: 2 .heic files; convert to JPEG" in shown and "left out: 1 .avif file;" in shown
    assert_rows(rows_of(), [*NAMES, "w.jfif"])


def test_a_pattern_may_be_absolute_or_at_home(photos, monkeypatch):
    assert find(f"{photos}/*.gif") == ImageFiles(photos, ("six.gif",))
    monkeypatch.setenv("HOME", str(photos.parent))
    assert find("~/photos/*.gif") == ImageFiles(photos, ("six.gif",))


def test_batches_say_why_a_row_is_black(photos):
    names = ("a/1.png", "cut.png", "gone.png", "a/2.JPG", "\udcff.png")
    batches = ImageFileBatches(ImageFiles(photos, names), Transform(32, 32), 3)
    assert len(batches) == 2
    first, second = batches[0], batches[1]
    assert [np.shape(batch["image"]) for batch in (first, second)] == [(3, 32, 32, 3), (2, 32, 32, 3)]
    assert [bool(reason) for reason in first["reason"] + second["reason"]] == [False, True, True, False, True]
    assert "No such file" in first["reason"][2] and second["reason"][1] == "its name is not UTF-8"
    np.testing.assert_array_equal(first["image"][0], model_of().view(photos / "a/1.png"))
    assert not np.any(first["image"][1:]) and second["image"][0].any() and not second["image"][1].any()


def test_texts_are_lines_and_flags(tmp_path):
    (tmp_path / "lines.txt").write_text("a frog\n\n  two buses  \nfür Elise\n", "utf-8")
    assert embed_folder.read_texts(f"{tmp_path}/lines.txt", ["a", " "]) == ["a frog", "two buses", "für Elise", "a"]
    (tmp_path / "lines.txt").write_text("für Elise\n", "latin-1")
    with pytest.raises(ValueError, match=r"lines.txt is not UTF-8 .*; save it as UTF-8"):
        embed_folder.read_texts(f"{tmp_path}/lines.txt")
