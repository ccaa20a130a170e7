"""The API of the page: every answer equals the model's own functions; hostile requests get one line."""

import dataclasses
import io
import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from detailclip_jax import demo
from detailclip_jax.config.sizes import size_of
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.evaluation.kept_objects import lowest
from detailclip_jax.inference import embeddings
from detailclip_jax.inference import model as inference
from detailclip_jax.inference.embeddings import Key, Table
from detailclip_jax.methods.masking import RemovalRule
from detailclip_jax.models.readouts import READOUTS
from detailclip_jax.runtime import errors
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import experiment
from detailclip_jax.training.mesh import make_mesh

pytest.importorskip("starlette")
testclient = pytest.importorskip("starlette.testclient", exc_type=ImportError)
pytest.importorskip("uvicorn")

from detailclip_jax.page import answers, app, guard  # noqa: E402

TEXTS = ["a frog", "two red kites", "a bus"]
HOST = "http://localhost:8462"


def noise(method, seed=0):
    """A tiny model of noise with CLIP's own vocabulary."""
    config = tiny.tiny_config(method)
    config.model.vocab_size = 49408
    built = experiment.build(config, make_mesh(jax.devices()[:1]))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jax.device_put(np.asarray(rng.normal(0, 0.2, x.shape), x.dtype)), built.state_shapes.params
    )
    variables = {"params": params, "ema_params": {}, "batch_stats": {}}
    return inference.Model(built.model, variables, config, params, "student", 3, f"runs/{method}")


def encoded(pixels, format="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def png_of(width, height):
    """The beginning of a PNG that claims a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">II", zlib.crc32(header), 99) + b"IDAT"


@pytest.fixture(scope="module")
def models():
    return noise("clip"), noise("mae")


@pytest.fixture(scope="module")
def photos(models, tmp_path_factory):
    """A folder of six images, embedded by the first model."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    keys = [Key("image", f"{number}.png") for number in range(6)]
    for key in keys:
        (folder / key.name).write_bytes(encoded(rng.integers(0, 256, (40, 50, 3), np.uint8)))
    rows = models[0].encode_image([folder / key.name for key in keys])
    return Table(embeddings.origin_of(models[0])._replace(root=str(folder)), dict(zip(keys, rows)))


def search_of(table):
    """The search of a table that the first model of the page embedded."""
    return app.Search(table.of("image"), table.origin.root, 0)


@pytest.fixture(scope="module")
def page(models, photos):
    scene = {
        "image": np.full((32, 32, 3), 90, np.uint8),
        "captions": ("a frog and a bus",),
        "nouns": np.array([3, 5, 3], np.int32),
    }
    return app.Page(models, search_of(photos), [scene])


@pytest.fixture(scope="module")
def client(page):
    with testclient.TestClient(app.build(page), base_url=HOST) as client:
        yield client


PIXELS = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def image(client):
    answer = client.post("/api/image", content=encoded(PIXELS))
    assert answer.status_code == 200, answer.text
    return answer.json()


def ok(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer, status):
    """The one line of an answer that refuses."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    line = answer.json()["error"]
    assert line and "\n" not in line and "Traceback" not in line
    return line


def shown(answer):
    with Image.open(io.BytesIO(answer.content)) as image:
        return np.asarray(image)


# answers


def test_about_names_models_scenes_and_limits(client):
    about = ok(client.get("/api/about"))
    assert [model["method"] for model in about["models"]] == ["clip", "mae"]
    assert [model["removes"] for model in about["models"]] == [False, True]  # the slider is for the second alone
    assert about["models"][0]["reason"] == "" and "no text" in about["models"][1]["reason"]
    (scene,) = about["scenes"]
    assert scene["caption"] == "a frog and a bus" and len(scene["texts"]) == 2 + app.NUM_OTHERS == len(
        {*scene["texts"]}
    )
    assert about["search"] == 6 and about["max_upload"] == app.MAX_UPLOAD
    np.testing.assert_array_equal(shown(client.get("/api/scenes/0.png")), np.full((32, 32, 3), 90))


def test_attention_and_removed_patches_are_those_of_the_model(client, image, models):
    assert (image["height"], image["width"]) == (60, 90)
    for answer, model in zip(image["models"], models):
        attention = model.attention(PIXELS)
        np.testing.assert_allclose(answer["attention"], attention.ravel(), atol=1e-5)
        side, order = answer["side"], np.array(answer["order"])
        assert side**2 == len(order) and sorted(order) == list(range(side**2))
        rules = [RemovalRule(side, (removed + 0.5) / side**2) for removed in range(1, side**2)]
        assert [rule.num_removed for rule in rules] == list(range(1, side**2))
        lowest_of = jax.jit(lambda attention, rules=rules: [lowest(attention, rule)[0] for rule in rules])
        for removed, expected in enumerate(lowest_of(attention.reshape(1, -1)), 1):
            np.testing.assert_array_equal(order < removed, expected)


def test_of_equal_attention_the_lower_index_is_removed_first():
    np.testing.assert_array_equal(answers.removal_order(np.array([[0.5, 0.1], [0.1, 0.5]])), [2, 0, 1, 3])


def test_texts_are_compared_as_by_the_model(client, image, models):
    answer = ok(client.post("/api/texts", json={"image": image["image"], "texts": [" a frog ", "", *TEXTS[1:]]}))
    assert answer["texts"] == TEXTS
    clip, mae = answer["models"]
    cosines = models[0].encode_image([PIXELS])[0] @ models[0].encode_text(TEXTS).T
    np.testing.assert_allclose(clip["cosines"], cosines, atol=1e-5)
    scale = np.exp(float(models[0].params["logit_scale"]["value"]))
    powers = np.exp(scale * cosines)
    np.testing.assert_allclose(clip["shares"], powers / powers.sum(), atol=2e-5)
    maps = models[0].dense(PIXELS, TEXTS, size=(43, 64))
    assert (clip["height"], clip["width"]) == (43, 64)
    np.testing.assert_allclose(np.reshape(clip["maps"], maps.shape), maps, atol=1e-5)
    assert list(mae) == ["reason"] and "mae" in mae["reason"]


def test_the_read_out_of_the_heat_maps_can_be_chosen(client, image, models):
    about = ok(client.get("/api/about"))
    assert about["readouts"] == list(READOUTS) and about["readout"] == ""
    for chosen, name in (("", "naclip"), ("plain", "plain")):
        body = {"image": image["image"], "texts": TEXTS, "readout": chosen}
        found = ok(client.post("/api/texts", json=body))["models"][0]
        maps = models[0].dense(PIXELS, TEXTS, name, size=(43, 64))
        assert found["readout"] == name
        np.testing.assert_allclose(np.reshape(found["maps"], maps.shape), maps, atol=1e-5)
    best = dataclasses.replace(models[0], best_readout="gem")
    page = app.Page([best], readout="sclip")
    assert page.about()["readout"] == "sclip" and "naclip, " in refused_readout(client, image, "naklip")
    assert refused_readout(client, image, ["plain"]) and best.readout == "gem"


def refused_readout(client, image, readout):
    body = {"image": image["image"], "texts": TEXTS, "readout": readout}
    return refused(client.post("/api/texts", json=body), 400)


@pytest.mark.parametrize("size", [None, (60, 90), (6, 9), (120, 45)])
def test_dense_maps_of_a_size_cover_the_image(models, monkeypatch, size):
    """With the brightness of each patch as cosine: a constant stays constant, a ramp runs from border to border."""
    model = models[0]
    (text,), patch = model.encode_text(["a frog"]), size_of(model.config.model).patch_size

    def brightness(_, images):
        missing = [-side % patch for side in images.shape[1:3]]
        pads = [(count // 2, count - count // 2) for count in missing]
        padded = np.pad(images / 255, [(0, 0), *pads, (0, 0)], mode="edge")
        num, height, width, _ = padded.shape
        patches = padded.reshape(num, height // patch, patch, width // patch, patch, 3)
        return patches.mean((2, 4, 5))[..., None] * text

    monkeypatch.setitem(model.__dict__, "_readout_encoder", lambda readout: brightness)
    height, width = size or (60, 90)
    constant = model.dense(np.full_like(PIXELS, 51), ["a frog"], size=size)
    np.testing.assert_allclose(constant, np.full((1, height, width), 0.2), atol=1e-5)
    ramp = np.broadcast_to(np.linspace(0, 255, 90)[:, None], PIXELS.shape).astype(np.uint8)
    (found,) = model.dense(ramp, ["a frog"], size=size)
    expected = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_neighbours_are_cosines_of_patch_features(client, image, models):
    answer = ok(client.post("/api/neighbours", json={"image": image["image"], "x": 0.99, "y": 0.3}))
    for found, model in zip(answer["models"], models):
        patches = model.features([PIXELS]).patches[0]
        side = len(patches)
        assert (found["row"], found["column"]) == (int(0.3 * side), side - 1)
        one = patches[found["row"], found["column"]]
        expected = patches @ one / (np.linalg.norm(patches, axis=-1) * np.linalg.norm(one))
        np.testing.assert_allclose(found["cosines"], expected.ravel(), atol=2e-5)
        assert found["cosines"][found["row"] * side + found["column"]] == 1
    corner = ok(client.post("/api/neighbours", json={"image": image["image"], "x": 1, "y": 1.0}))
    assert corner["models"][0]["row"] == image["models"][0]["side"] - 1


def test_search_finds_the_nearest_images(client, image, models, photos):
    names, rows = photos.of("image")
    for body, wanted in (
        ({"text": "a frog"}, models[0].encode_text(["a frog"])[0]),
        ({"image": image["image"]}, models[0].encode_image([PIXELS])[0]),
    ):
        found = ok(client.post("/api/search", json=body))["found"]
        order = np.argsort(-(rows @ wanted))
        assert [match["name"] for match in found] == [names[place] for place in order]
        np.testing.assert_allclose([match["cosine"] for match in found], (rows @ wanted)[order], atol=1e-5)
        first = client.get(f"/api/found/{found[0]['number']}.png")
        with Image.open(f"{photos.origin.root}/{found[0]['name']}") as stored:
            np.testing.assert_array_equal(shown(first), np.asarray(stored))


def test_the_square_is_what_the_model_sees(client, image, models):
    whole, square = (shown(client.get(f"/api/image/{image['image']}{end}.png")) for end in ("", "-0"))
    np.testing.assert_array_equal(whole, PIXELS)
    assert square.shape == (answers.SHOWN_SIDE, answers.SHOWN_SIDE, 3)
    view = models[0].view(PIXELS).astype(float)
    factor = answers.SHOWN_SIDE // len(view)
    pooled = square[: factor * len(view), : factor * len(view)].reshape(len(view), factor, len(view), factor, 3)
    assert np.corrcoef(pooled.mean((1, 3)).ravel(), view.ravel())[0, 1] > 0.9


def test_the_crop_of_the_square_follows_the_preprocessing(models):
    cropped = models[0].preprocessed({"crop_ratio": 0.5})
    bright = np.zeros((400, 400, 3), np.uint8)
    bright[100:300, 100:300] = 255
    inner, whole = answers.look([cropped, models[0]], bright)
    assert inner.square.mean() > 250 and whole.square.mean() < 100


def test_an_image_is_resized_once_for_each_preprocessing_and_the_values_are_those_of_the_model(models, monkeypatch):
    pixels = np.random.default_rng(5).integers(0, 256, (90, 130, 3), np.uint8)
    asked = [models[0], models[1], models[0].preprocessed({"crop_ratio": 0.875})]
    expected = [(m.encode_image([pixels])[0], m.attention(pixels), m.features([pixels]).patches[0]) for m in asked]
    sizes, view = [], Transform.view
    monkeypatch.setattr(Transform, "view", lambda self, image: sizes.append(self.size) or view(self, image))
    seen = answers.look(asked, pixels)
    assert sizes == [models[0].config.model.image_size, answers.SHOWN_SIDE] * 2
    for one, (embedding, attention, patches) in zip(seen, expected):
        np.testing.assert_array_equal(one.embedding, embedding)
        np.testing.assert_array_equal(one.attention, attention)
        flat = patches.reshape(len(one.patches), -1)
        np.testing.assert_array_equal(one.patches, flat / np.linalg.norm(flat, axis=1, keepdims=True))
    assert (seen[2].attention != seen[0].attention).any()


def test_uploads_are_decoded_by_the_rules_of_training(client, models):
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(PIXELS).save(turned, "JPEG", exif=exif, quality=95)
    grey = encoded(PIXELS[..., 0])
    for data in (turned.getvalue(), grey, encoded(PIXELS, "WEBP"), encoded(PIXELS, "GIF")):
        answer = ok(client.post("/api/image", content=data))
        np.testing.assert_allclose(answer["models"][0]["attention"], models[0].attention(data).ravel(), atol=1e-5)
        np.testing.assert_array_equal(shown(client.get(f"/api/image/{answer['image']}.png")), inference.pixels(data))


def test_large_images_are_reduced_for_heat_maps_only():
    pixels = np.zeros((1500, 3000, 3), np.uint8)
    assert answers.reduced(pixels).shape == (512, 1024, 3)
    assert answers.reduced(pixels[:1, :]).shape == (1, 1024, 3)
    assert answers.reduced(PIXELS) is PIXELS


# hostile requests


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"<html>", "not an image"),
        (encoded(PIXELS)[:900], "truncated or damaged"),
        (b"%!PS-Adobe", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "not an image"),
        (png_of(65_536, 65_536), "too large"),
        (png_of(9000, 9000), "too large"),
    ],
)
def test_bad_uploads_get_one_line(client, data, reason):
    assert reason in refused(client.post("/api/image", content=data), 400)


def test_too_many_bytes_are_refused_before_decoding(client, monkeypatch):
    monkeypatch.setattr(app, "decode", lambda data: pytest.fail("decoded"))
    assert "too large" in refused(client.post("/api/image", content=b"\xff\xd8" * (app.MAX_UPLOAD // 2 + 1)), 413)
    long = json.dumps({"image": "a", "texts": ["x" * guard.MAX_JSON]})
    answer = client.post("/api/texts", content=long, headers={"content-type": "application/json"})
    assert "too large" in refused(answer, 413)


@pytest.mark.parametrize(
    "texts",
    [None, "a frog", [], [" "], [1], ["a"] * (app.MAX_TEXTS + 1), ["a" * (app.MAX_LETTERS + 1)], ["\ud800"], [["a"]]],
)
def test_bad_texts_get_one_line(client, image, texts):
    body = json.dumps({"image": image["image"], "texts": texts})
    refused(client.post("/api/texts", content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("x", [None, "1", -0.1, 1.1, float("nan"), float("inf"), True, [0.5], 10**400])
def test_bad_places_get_one_line(client, image, x):
    body = json.dumps({"image": image["image"], "x": x, "y": 0.5})
    refused(client.post("/api/neighbours", content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 50_000, b"1"])
def test_bad_json_gets_one_line(client, content):
    refused(client.post("/api/texts", content=content, headers={"content-type": "application/json"}), 400)
    refused(client.post("/api/texts", content=content, headers={"content-type": "text/plain"}), 415)


@pytest.mark.parametrize(
    "path",
    [
        "/api/image/0123456789abcdef.png",
        "/api/image/0123456789abcdef-0.png",
        "/api/scenes/1.png",
        "/api/found/6.png",
        *(f"/api/{name}{'9' * 5000}.png" for name in ("scenes/", "found/", "image/0123456789abcdef-")),
        "/api/nothing",
        "/assets/page.html",
        "/..%2fapp.py",
        "/api/texts",
    ],
)
def test_unknown_addresses_get_one_line(client, path):
    refused(client.get(path), 405 if path == "/api/texts" else 404)


def test_forgotten_images_are_named(client, page, image, monkeypatch):
    monkeypatch.setattr(app, "NUM_HELD", 1)
    monkeypatch.setattr(page, "_held", page._held.copy())
    other = ok(client.post("/api/image", content=encoded(PIXELS[::-1])))
    for name in (image["image"], 7, None):
        answer = client.post("/api/texts", json={"image": name, "texts": TEXTS})
        assert "choose it again" in refused(answer, 404)
    gone = image["image"]
    refused(client.get(f"/api/image/{gone}-0.png"), 404)
    ok(client.post("/api/texts", json={"image": other["image"], "texts": TEXTS}))


def test_a_search_without_a_folder_or_with_a_moved_one(models, photos, image):
    with testclient.TestClient(app.build(app.Page(models[1:])), base_url=HOST) as client:
        assert "--embeddings=FILE" in refused(client.post("/api/search", json={"text": "a"}), 404)
        refused(client.get("/api/found/0.png"), 404)
    moved = Table(photos.origin._replace(root="/nowhere"), photos.rows)
    escapes = Table(photos.origin, {Key("image", "../secret.png"): photos.of("image")[1][0]})
    for table in (moved, escapes):
        with testclient.TestClient(app.build(app.Page(models, search_of(table))), base_url=HOST) as client:
            assert "cannot be read any more" in refused(client.get("/api/found/0.png"), 404)


def test_found_images_that_are_links_are_shown(models, photos, tmp_path):
    root, name = tmp_path / "root", photos.of("image")[0][0]
    root.mkdir()
    (root / name).symlink_to(f"{photos.origin.root}/{name}")
    table = Table(photos.origin._replace(root=str(root)), photos.rows)
    with testclient.TestClient(app.build(app.Page(models, search_of(table))), base_url=HOST) as client:
        assert client.get("/api/found/0.png").status_code == 200


def test_a_fault_of_the_program_is_one_line_and_a_traceback_in_the_terminal(client, page, monkeypatch, capsys):
    monkeypatch.setattr(answers, "neighbours", lambda *_: 1 / 0)
    answer = ok(client.post("/api/image", content=encoded(PIXELS)))
    line = refused(client.post("/api/neighbours", json={"image": answer["image"], "x": 0, "y": 0}), 500)
    assert "ZeroDivisionError" in line and "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8462", "", "localhost:8462@evil.example"]
)
def test_other_hosts_are_refused(client, host):
    for method, path in (("GET", "/"), ("GET", "/api/about"), ("POST", "/api/image")):
        assert "localhost only" in refused(client.request(method, path, headers={"host": host}), 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:1", "[::1]:8462"])
def test_this_machine_is_answered_also_through_a_tunnel(client, host):
    ok(client.get("/api/about", headers={"host": host, "origin": f"http://{host}"}))


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"origin": "https://localhost:8462"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example", "sec-fetch-mode": "navigate"},
    ],
)
def test_other_origins_are_refused(client, headers):
    assert "other sites" in refused(client.post("/api/image", content=encoded(PIXELS), headers=headers), 403)
    assert "other sites" in refused(client.get("/api/about", headers=headers), 403)


def test_a_link_to_the_page_is_followed(client):
    answer = client.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"})
    assert answer.status_code == 200


def test_the_page_loads_nothing_from_elsewhere(client):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert "http://" not in answer.text and "https://" not in answer.text and "//cdn" not in answer.text
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "innerHTML" not in client.get("/page.js").text


# the command


def test_without_a_checkpoint_the_ways_to_one_are_named(capsys):
    assert demo.main([]) == errors.USAGE_ERROR
    error = capsys.readouterr().err
    assert "detailclip_jax.main --config=stickers" in error and "detailclip_jax.import_torch" in error


def test_a_port_in_use_is_named(capsys):
    with demo.listening(0) as taken:
        taken.listen()
        number = taken.getsockname()[1]
        assert demo.main(["--checkpoint=runs/nothing", f"--port={number}"]) == errors.RUN_ERROR
        assert f"port {number}" in (error := capsys.readouterr().err) and "--port=N" in error
        assert taken.getsockname()[0] == "127.0.0.1"
    with pytest.raises(SystemExit):
        demo.parser().parse_args(["--port=70000"])


def test_an_unknown_read_out_is_named(capsys):
    assert demo.main(["--checkpoint=runs/nothing", "--port=0", "--readout=naklip"]) == errors.USAGE_ERROR
    assert "unknown read-out 'naklip'; did you mean 'naclip'?" in capsys.readouterr().err


def test_without_the_extra_the_way_out_is_named(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert demo.main(["--checkpoint=runs/nothing"]) == errors.USAGE_ERROR
    assert "pip install 'detailclip_jax[demo]'" in capsys.readouterr().err


def test_requests_do_not_copy_the_embeddings(models, photos, tmp_path, monkeypatch):
    embeddings.write(tmp_path / "photos.npz", photos)
    page = app.Page(models, app.open_search(tmp_path / "photos.npz", models))
    monkeypatch.setattr(embeddings, "_stacked", lambda rows: pytest.fail("the rows were copied"))
    assert page.thumbnail(0).shape == (40, 50, 3) and page.about()["search"] == 6
    wanted = photos.rows[Key("image", "2.png")]
    assert answers.nearest(page.search.images, wanted, 1)[0]["name"] == "2.png"


def test_embeddings_of_another_model_are_refused(models, photos, tmp_path):
    file = tmp_path / "photos.npz"
    embeddings.write(file, photos)
    assert app.open_search(file, models[::-1]).model == 1
    with pytest.raises(ValueError, match="another model"):
        app.open_search(file, models[1:])
    texts = Table(photos.origin, {Key("text", "a frog"): photos.of("image")[1][0]})
    embeddings.write(file, texts)
    with pytest.raises(ValueError, match="no images to search"):
        app.open_search(file, models)


def served(page, work):
    """Runs `serve` while `work` is called with the port of the page; returns its lines."""
    lines, at = [], demo.listening(0)
    number = at.getsockname()[1]

    class Stop(Exception):
        pass

    class Working(Console):
        def say(self, text=""):
            lines.append(text)
            work(number)
            raise Stop

    with at, pytest.raises(Stop):
        demo.serve(app.build(page), at, Working())
    assert f"http://localhost:{number}" in lines[0]
    with demo.listening(number):  # the port is free again
        pass


def asked(number):
    """The status and the JSON of /api/about."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/api/about", timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def begun(number, start):
    """A connection that has sent the start of a request, and nothing more."""
    client = socket.create_connection(("127.0.0.1", number), timeout=20)
    client.sendall(start)
    return client


UPLOAD = b"POST /api/image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"


def test_the_server_ends_when_it_is_asked_to(page):
    before = threading.active_count()
    served(page, lambda number: asked(number)[0] == 200 or pytest.fail("not answered"))
    assert threading.active_count() <= before + 1


def test_a_client_that_leaves_during_an_upload_prints_nothing(page, caplog, capfd):
    def leave(number):
        begun(number, UPLOAD).close()
        with begun(number, UPLOAD) as client:  # ends with a reset
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert [asked(number)[0] for _ in range(3)] == [200] * 3

    served(page, leave)
    assert not caplog.records and capfd.readouterr() == ("", "")


def sent(number, body):
    """The status of a whole upload."""
    request = urllib.request.Request(f"http://127.0.0.1:{number}/api/image", data=body)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_half_sent_uploads_keep_the_page_from_nothing_but_uploads_and_end_soon(page, monkeypatch):
    monkeypatch.setattr(guard, "SILENCE", 0.5)

    def crowd(number):
        clients = [begun(number, UPLOAD) for _ in range(400)]
        first, last = clients[0].recv(2**16), clients[-1].recv(2**16)
        assert b"503" in last.split(b"\r\n")[0] and b"the server is receiving 12 others; try again" in last
        assert asked(number)[0] == 200
        assert b"408" in first.split(b"\r\n")[0] and b"the upload stopped for 0.5 seconds; send it again" in first
        assert clients[0].recv(1) == b""
        until = time.monotonic() + 20
        while (status := sent(number, encoded(PIXELS))) == 503 and time.monotonic() < until:
            time.sleep(0.01)
        assert status == 200
        for client in clients:
            client.close()

    served(page, crowd)


def test_an_upload_may_take_longer_than_the_limit_of_its_silence(page, monkeypatch):
    monkeypatch.setattr(guard, "SILENCE", 0.5)

    def slow(number):
        with begun(number, UPLOAD) as client:
            for piece in (b"x" * 500, b"x" * 497):
                time.sleep(0.3)
                client.sendall(piece)
            assert b"400" in client.recv(2**16).split(b"\r\n")[0]  # no image

    served(page, slow)


def test_of_simultaneous_requests_those_above_the_limit_are_told_to_try_again(page, monkeypatch):
    answering, free = threading.Semaphore(0), threading.Event()
    monkeypatch.setattr(page, "about", lambda: answering.release() or (free.wait(20) and {}))

    def crowd(number):
        about = b"GET /api/about HTTP/1.1\r\nHost: localhost\r\n\r\n"
        clients = [begun(number, about) for _ in range(guard.MAX_AT_ONCE)]
        for _ in clients:
            assert answering.acquire(timeout=20)
        assert asked(number) == (503, {"error": "the server is busy with 12 others; try again in a moment"})
        free.set()
        assert all(client.recv(2**16).startswith(b"HTTP/1.1 200") for client in clients)
        assert asked(number)[0] == 200
        for client in clients:
            client.close()

    served(page, crowd)
