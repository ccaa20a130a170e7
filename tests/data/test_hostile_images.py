"""What a folder of images or an image's bytes may try: nothing hangs, leaves its folder, or is decoded by others."""

import ast
import contextlib
import os
import pathlib
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import prepare_trees as trees
import pytest
from image_cases import encoded, make_image
from PIL import Image
from test_prepare import prepared

from detailclip_jax.convert import readers
from detailclip_jax.convert.job import Request
from detailclip_jax.convert.prepared_set import NothingAccepted
from detailclip_jax.data import decoding
from detailclip_jax.data.decoding import BadImage
from detailclip_jax.data.image_files import ImageFileBatches, find
from detailclip_jax.data.labelled import folders, open_set
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.resource_budget import Budget
from detailclip_jax.data.sources import MissingData
from detailclip_jax.runtime.files import TooLarge, read_bytes
from detailclip_jax.runtime.folders import LeavesFolder, Walk, inside

ROOT = pathlib.Path(__file__).parents[2]
# Beginnings that Pillow has a decoder for, beside those that are read
OTHERS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
    "EPS for DOS": b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, 99, 0, 0, 0, 0, 0) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(12),
    "ICO": b"\0\0\1\0\1\0" + bytes([9, 9, 0, 0]) + struct.pack("<HHII", 1, 32, 400, 22) + bytes(400),
    "ICNS": b"icns" + struct.pack(">I", 100) + bytes(92),
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
    "TGA": bytes([0, 0, 2]) + bytes(9) + struct.pack("<HHBB", 9, 9, 24, 0) + bytes(243),
    "PCX": b"\n\5\1\x08" + struct.pack("<4H", 0, 0, 8, 8) + bytes(200),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "DDS": b"DDS " + struct.pack("<I", 124) + bytes(200),
    "SGI": b"\x01\xda\0\1\0\3" + bytes(600),
    "FLI": bytes(4) + b"\x11\xaf" + bytes(200),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
    "EMF": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60),
    "GRIB": b"GRIB\0\0\0\1" + bytes(60),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "AVIF": b"\0\0\0\x1cftypavif" + bytes(60),
    "XPM": b'/* XPM */\nstatic char * x[] = {\n"1 1 1 1",\n"a c #000000",\n"a"};\n',
    "QOI": b"qoif" + struct.pack(">IIBB", 9, 9, 3, 0) + bytes(60),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "IM": b"Image type: L image\r\nImage size (x*y): 9*9\r\n".ljust(511, b"\0") + b"\x1a",
}


@contextlib.contextmanager
def within(seconds):
    """TimeoutError in what waits longer, so that a hang is a failure."""

    def late(number, frame):
        raise TimeoutError(f"waited for {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# other formats


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused_by_their_first_bytes(name):
    with pytest.raises(BadImage, match=r"not an image: .*JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"):
        decoding.decode(OTHERS[name])


NO_OTHERS = """
import sys, pickle, subprocess
from detailclip_jax.data import decoding

def run(*arguments, **options):
    raise SystemExit("a program was started")

subprocess.Popen = subprocess.check_call = run
for data in pickle.load(sys.stdin.buffer):
    try:
        decoding.decode(data)
    except decoding.BadImage:
        continue
    raise SystemExit(f"decoded {data[:9]}")
allowed = {"Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP"}
ends = "ImagePlugin"
found = {n[4:].removesuffix(ends) for n in sys.modules if n.startswith("PIL.") and n.endswith(ends)}
print(*sorted(found - allowed))
"""


def test_no_other_decoder_is_even_imported():
    """Pillow imports all of them to look for a format, Ghostscript's caller (EPS) among them."""
    damaged = [bytes([byte]) + data[1:] for data in OTHERS.values() for byte in (0, 255)]
    told = subprocess.run(
        [sys.executable, "-c", NO_OTHERS],
        input=pickle.dumps([*OTHERS.values(), *damaged]),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert (told.returncode, told.stdout.decode().strip()) == (0, ""), told.stderr.decode()[-999:]


def test_one_function_opens_images():
    """`Image.open` without its formats would find them all."""
    callers = [
        f"{path.name}:{node.lineno}"
        for path in [*(ROOT / "detailclip_jax").rglob("*.py"), *(ROOT / "configs").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "open" and getattr(node.value, "id", "") == "Image"
    ]
    assert [caller.partition(":")[0] for caller in callers] == ["decoding.py"]


def test_an_eps_named_jpg_is_a_reject_of_every_source(tmp_path):
    eps = OTHERS["EPS"]
    trees.write_tar(tmp_path / "tars/x.tar", [("eps.jpg", eps), *trees.sample("good", 2)])
    assert prepared(tmp_path / "tars", tmp_path / "a")["rejected"] == {"not an image": 1}
    trees.write(tmp_path / "tree/cat/eps.jpg", eps)
    trees.write(tmp_path / "tree/cat/good.jpg", trees.jpeg(1))
    assert prepared(tmp_path / "tree", tmp_path / "b", kind="imagefolder")["rejected"] == {"not an image": 1}
    batch = ImageFileBatches(find(str(tmp_path / "tree")), Transform(8, 8), 2)[0]
    assert [reason[:12] for reason in batch["reason"]] == ["not an image", ""]


# what is decoded at once


def test_a_budget_lets_no_more_in_than_it_has():
    budget, held, most, lock = Budget(100), [0], [0], threading.Lock()

    def work(amount):
        with budget.scope():
            with budget.taken(amount), lock:
                held[0] += min(amount, 100)
                most[0] = max(most[0], held[0])
            time.sleep(0.002)
            with lock:
                held[0] -= min(amount, 100)

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (30, 60, 100, 500, 10, 45) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 60 <= most[0] <= 100 and budget.free == 100 and not any(thread.is_alive() for thread in threads)


def test_a_thread_that_holds_a_part_does_not_wait_for_itself():
    budget = Budget(10)
    with within(5), budget.scope():
        with budget.taken(8), budget.taken(8):
            assert budget.free == -6
        with budget.scope():
            assert budget.free == -6
        assert budget.free == -6
    assert budget.free == 10
    with pytest.raises(ValueError), budget.taken(7):
        raise ValueError
    assert budget.free == 10


def test_sixteen_threads_do_not_decode_sixteen_large_images_at_once(monkeypatch):
    budget = Budget(2 * 64 * 96)
    monkeypatch.setattr(decoding, "BUDGET", budget)
    free, original = [], decoding.turn_upright

    def turn_slowly(*arguments):
        free.append(budget.free)
        time.sleep(0.01)
        return original(*arguments)

    monkeypatch.setattr(decoding, "turn_upright", turn_slowly)
    data = [encoded(make_image(64, 96), format) for format in ("PNG", "JPEG", "BMP", "WEBP")] * 4
    threads = [threading.Thread(target=decoding.decode, args=(one,)) for one in data]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(free) == 16 and set(free) <= {0, 64 * 96} and 0 in free and budget.free == budget.total


def test_pixels_count_until_they_are_used():
    data = encoded(make_image(64, 96))
    with decoding.decoded_for_use(data) as pixels:
        assert decoding.BUDGET.free == decoding.MAX_PIXELS_AT_ONCE - pixels.size // 3
    assert decoding.BUDGET.free == decoding.MAX_PIXELS_AT_ONCE


def test_a_reduced_jpeg_takes_what_comes_out_and_costly_formats_twice():
    def cost(data, reduction=1):
        return decoding.opened(data)._cost(reduction)

    assert cost(encoded(make_image(64, 96)), 4) == 16 * 24
    assert cost(encoded(make_image(64, 96), progressive=True), 4) == 64 * 96
    assert cost(encoded(np.zeros((64, 96, 4), np.uint8), "PNG"), 4) == 64 * 96
    assert cost(encoded(make_image(64, 96), "WEBP")) == cost(encoded(Image.new("CMYK", (96, 64)))) == 2 * 64 * 96


# too large files, and what leaves its folder


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(TooLarge, match=r"too large: .*x: the limit is 4 bytes"):
        read_bytes(tmp_path / "x", 4)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(5 * 2**30)
    with within(10), pytest.raises(TooLarge, match="the limit is 268,435,456 bytes"):
        read_bytes(tmp_path / "sparse")


def secret(folder):
    trees.write(folder / "secret/s.jpg", trees.jpeg(7))
    return folder / "secret/s.jpg"


LEAVING = ("{secret}", "../secret/s.jpg", "a/../../secret/s.jpg", "/dev/zero")


def tables(folder, names, kind):
    rows = [("image", "caption"), *((name, "text") for name in names)]
    if kind == "jsonl":
        text = "".join(f'{{"image": "{name}", "caption": "text"}}\n' for name in names)
    else:
        text = "".join(({"csv": ",", "tsv": "\t"}[kind]).join(row) + "\n" for row in rows)
    return trees.write(folder / f"t.{kind}", text.encode())


def parquet_of(path, names):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table({"image": names, "caption": ["text"] * len(names)}), path
    )
    return path


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_rows_stay_in_the_folder_of_the_images(tmp_path, kind, images):
    root, hidden = tmp_path / "root", secret(tmp_path)
    trees.write(root / "good.jpg", trees.jpeg(1))
    trees.write(root / "a/deep.jpg", trees.jpeg(2))
    (root / "link.jpg").symlink_to(hidden)
    (root / "links").symlink_to(hidden.parent)
    (root / "inner.jpg").symlink_to("a/deep.jpg")
    inner = ["good.jpg", "a/../good.jpg", str(root / "good.jpg"), "inner.jpg", "link.jpg", "links/s.jpg"]
    names = [*inner, *(name.format(secret=hidden) for name in LEAVING)]
    table = parquet_of(root / "t.parquet", names) if kind == "parquet" else tables(root, names, kind)
    options: Any = {"images": str(root)} if images else {}
    part = prepared(table, tmp_path / "out", kind=kind, **options)
    assert part["num_examples"] == len(inner)
    assert part["rejected"] == {"unsafe path": 4}


def test_the_way_out_is_named(tmp_path):
    table = tables(tmp_path / "lists", [str(secret(tmp_path))], "csv")
    with pytest.raises(NothingAccepted):
        prepared(table, tmp_path / "out", kind="csv")
    text = (tmp_path / "out/train-rejected.jsonl").read_text()
    assert "is outside of" in text and "--images" in text


def test_links_are_followed(tmp_path):
    hidden, root = secret(tmp_path), tmp_path / "data/set"
    trees.write(root / "cat/good.jpg", trees.jpeg(1))
    (root / "cat/link.jpg").symlink_to(hidden)
    (root / "dog").symlink_to(hidden.parent)
    names = ["cat/good.jpg", "cat/link.jpg", "dog/s.jpg"]
    found = find(str(root))
    assert list(found.names) == names and not found.left_out
    assert not any(ImageFileBatches(found, Transform(8, 8), 3)[0]["reason"])
    source = open_set("set", tmp_path / "data").source
    assert [source[index]["key"] for index in range(3)] == names
    part = prepared(root, tmp_path / "out", kind="imagefolder")
    assert part["rejected"] == {} and part["num_examples"] == 3


def test_links_in_circles_and_fans_end(tmp_path):
    """30 levels of two links each would be 2^30 paths."""
    trees.write(tmp_path / "d30/x.jpg", trees.jpeg(1))
    for level in range(30):
        for name in "ab":
            (tmp_path / f"d{level}").mkdir(exist_ok=True)
            (tmp_path / f"d{level}/{name}").symlink_to(f"../d{level + 1}")
    (tmp_path / "d30/up").symlink_to("..")
    with within(20):
        assert Walk(tmp_path).files("d0") == ["d0/" + "a/" * 30 + "x.jpg"]
        assert Walk(tmp_path).matching(("d0", "**", "*.jpg")) == ["d0/" + "a/" * 30 + "x.jpg"]
        assert len(find(f"{tmp_path}/**/*.jpg").names) == len(find(str(tmp_path)).names) == 1


def test_inside_follows_what_the_system_opens(tmp_path):
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "alias").symlink_to("root")
    for name in ("x", "a/../x", str(tmp_path / "root/x"), str(tmp_path / "alias/x")):
        assert os.path.realpath(inside(tmp_path / "alias", name)) == str(tmp_path / "root/x")
    for name in ("..", "../rootless", "/", "/etc/passwd"):
        with pytest.raises(LeavesFolder, match="unsafe path"):
            inside(tmp_path / "root", name)
    assert inside("/", "etc") == "/etc"


def test_a_link_to_itself_among_class_folders_is_no_traceback(tmp_path):
    for name in ("cat", "dog"):
        trees.write(tmp_path / "set" / name / "a.jpg", trees.jpeg(1))
    (tmp_path / "set" / "loop").symlink_to("loop")
    contents = folders.read(tmp_path / "set", "test")
    assert contents.classes == ("cat", "dog") and len(contents.source) == 2
    (tmp_path / "set/cat/loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(MissingData, match=r"loop\.jpg"):
        folders.read(tmp_path / "set", "test")
    request = Request("imagefolder", (str(tmp_path / "set"),), str(tmp_path))
    pathlib.Path(request.work).mkdir()
    assert readers.source_of("imagefolder").plan(request).classes == ("cat", "dog")
