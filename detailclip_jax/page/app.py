"""The server of the page: a JSON API over `answers`, and the files of the page itself.

| request | answer |
|---|---|
| GET / | the page |
| GET /api/about | models, scenes, limits |
| GET /api/scenes/N.png | a scene of stickers |
| POST /api/image, bytes of an image file | an id, and attention and order of removal by model |
| GET /api/image/ID.png, /api/image/ID-M.png | the image, and the square that model M sees |
| POST /api/texts {image, texts, readout} | cosines, shares and heat maps by model; readout "": that of each model |
| POST /api/neighbours {image, x, y} | cosines of the patch at (x, y) with all patches, by model |
| POST /api/search {text} or {image} | the nearest images of the embedded folder |
| GET /api/found/N.png | image N of the embedded folder |

A request that is not answered gets {"error": one line}. One request is computed at a time, and few wait for it.
Uploads that are not complete are counted by themselves, so that they keep no other request from its answer.
"""

import hashlib
import io
import threading
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from anyio import to_thread
from jaxtyping import UInt8
from PIL import Image
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from detailclip_jax import methods
from detailclip_jax.data.decoding import BUDGET, BadImage, decode, decoded_for_use
from detailclip_jax.data.stickers.scene_source import Stickers, noun_names, zero_shot_prompts
from detailclip_jax.data.stickers.sprites import ATTRIBUTION
from detailclip_jax.inference import embeddings
from detailclip_jax.inference.embeddings import IMAGE, Named
from detailclip_jax.inference.model import Model
from detailclip_jax.models.readouts import READOUTS
from detailclip_jax.page import answers
from detailclip_jax.page.guard import Guard, Places, Refused, body_of, error_response, json_of
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.runtime.folders import inside
from detailclip_jax.runtime.terminal import printable

MAX_UPLOAD = 32 * 2**20  # bytes of an image file; pixels are limited as in training, see `data.decoding`
MAX_TEXTS, MAX_LETTERS = 16, 500
NUM_HELD = 32  # images that the server remembers
NUM_SCENES, SCENE_SIDE = 12, 320
NUM_MATCHES, MATCH_SIDE = 24, 240
NUM_OTHERS = 3  # captions of objects that a scene lacks, which it is offered with
FILES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}


class Search(NamedTuple):
    """The images of an embedded folder, and which of the models embedded it."""

    images: Named
    root: str
    model: int


class Held(NamedTuple):
    """An image that the server remembers: reduced pixels, and what each model computed of it."""

    pixels: UInt8[np.ndarray, "H W 3"]
    seen: tuple[answers.Seen, ...]


class Page:
    """The state of the server: models, scenes, an embedded folder, and the last images."""

    def __init__(
        self,
        models: Sequence[Model],
        search: Search | None = None,
        scenes: Sequence[Mapping[str, Any]] = (),
        readout: str | None = None,
    ):
        """Stores them; `scenes` are examples of stickers, `readout` is chosen at first (None: that of each model)."""
        self.models, self.search, self.scenes, self.readout = tuple(models), search, tuple(scenes), readout
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._alone = threading.Lock()

    def about(self) -> dict[str, Any]:
        """What the page needs to know at its start."""
        return {
            "models": [
                {
                    "path": printable(model.path),
                    "method": model.config.method,
                    "step": model.step,
                    "weights": model.weights,
                    "size": model.config.model.size,
                    "image_size": model.config.model.image_size,
                    "ratio": float(model.config.masking.ratio),
                    "removes": methods.build(model.config).hides_patches,
                    "reason": no_texts(model),
                }
                for model in self.models
            ],
            "scenes": [about_scene(scene) for scene in self.scenes],
            "credit": ATTRIBUTION if self.scenes else "",
            "readouts": list(READOUTS),
            "readout": self.readout or "",
            "search": len(self.search.images.names) if self.search else 0,
            "max_upload": MAX_UPLOAD,
            "max_texts": MAX_TEXTS,
        }

    def image(self, data: bytes) -> dict[str, Any]:
        """Decodes and remembers an image; returns its id and what every model sees."""
        name = hashlib.sha256(data).hexdigest()[:16]
        with self._alone:
            if name not in self._held:
                with BUDGET.scope():
                    pixels = decode(data)
                    self._held[name] = Held(answers.reduced(pixels), answers.look(self.models, pixels))
            self._held.move_to_end(name)
            while len(self._held) > NUM_HELD:
                self._held.popitem(last=False)
            held = self._held[name]
        height, width = held.pixels.shape[:2]
        return {"image": name, "height": height, "width": width, "models": [answers.described(s) for s in held.seen]}

    def held(self, name: Any) -> Held:
        """An image by its id; raises Refused for an id that the server does not remember."""
        held = self._held.get(name) if isinstance(name, str) else None
        if held is None:
            raise Refused(404, "the server does not remember this image any more; choose it again")
        return held

    def texts(self, body: dict[str, Any]) -> dict[str, Any]:
        """Compares an image with texts; a model without a text encoder gives the reason instead."""
        held, texts = self.held(body.get("image")), checked_texts(body.get("texts"))
        readout = body.get("readout", "")
        if not isinstance(readout, str) or readout not in ("", *READOUTS):
            raise Refused(400, f"readout is one of {', '.join(READOUTS)}, or empty for that of each model")
        with self._alone:
            compared = [
                {"reason": reason}
                if (reason := no_texts(model))
                else answers.compared(model, seen, held.pixels, texts, readout or None)
                for model, seen in zip(self.models, held.seen)
            ]
        return {"texts": texts, "models": compared}

    def neighbours(self, body: dict[str, Any]) -> dict[str, Any]:
        """Compares the patch at (x, y) with the others."""
        held, x, y = self.held(body.get("image")), checked_share(body.get("x")), checked_share(body.get("y"))
        return {"models": [answers.neighbours(seen, x, y) for seen in held.seen]}

    def nearest(self, body: dict[str, Any]) -> dict[str, Any]:
        """Searches the embedded folder for a text or an image."""
        if self.search is None:
            raise Refused(404, "no folder is embedded; start with --embeddings=FILE, which embed --out=FILE writes")
        number = self.search.model
        if "image" in body:
            wanted = self.held(body["image"]).seen[number].embedding
        else:
            (text,) = checked_texts([body.get("text")])
            if reason := no_texts(self.models[number]):
                raise Refused(400, reason)
            with self._alone:
                wanted = self.models[number].encode_text([text])[0]
        return {"found": answers.nearest(self.search.images, wanted, NUM_MATCHES)}

    def thumbnail(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        """Image `number` of the embedded folder, reduced; raises Refused if it cannot be read any more."""
        if self.search is None or number >= len(self.search.images.names):
            raise Refused(404, "there is no such image")
        try:
            path = inside(self.search.root, self.search.images.names[number])
            with decoded_for_use(read_bytes(path)) as pixels:
                return answers.reduced(pixels, MATCH_SIDE)
        except (BadImage, OSError) as error:
            raise Refused(404, f"cannot be read any more: {printable(str(error))}") from error

    def warm_up(self) -> None:
        """Compiles what the page needs, by answering for a square and a wide image."""
        for size in ((SCENE_SIDE, SCENE_SIDE), (SCENE_SIDE, 3 * SCENE_SIDE)):
            pixels = np.zeros((*size, 3), np.uint8)
            for model, seen in zip(self.models, answers.look(self.models, pixels)):
                if not no_texts(model):
                    for count in (1, 2):
                        answers.compared(model, seen, pixels, ["a"] * count, self.readout)


def no_texts(model: Model) -> str:
    """Returns why a model cannot compare images with texts; "" if it can."""
    try:
        model.require("encode_text")
        model.require("dense")
        return ""
    except ValueError as error:
        return str(error)


def about_scene(scene: Mapping[str, Any]) -> dict[str, Any]:
    """Caption of a scene, and texts to compare it with: one per kind of object, and a few objects that it lacks."""
    names, prompts = noun_names(), zero_shot_prompts()
    there = list(dict.fromkeys(scene["nouns"].tolist()))
    others = [(17 * (there[0] + 1) + 29 * place) % len(names) for place in range(len(names))]
    lacking = list(dict.fromkeys(noun for noun in others if noun not in there))[:NUM_OTHERS]
    return {"caption": scene["captions"][0], "texts": [prompts[noun][0] for noun in (*there, *lacking)]}


def checked_share(value: Any) -> float:
    """Returns a number from 0 to 1; raises Refused for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Refused(400, "x and y must be numbers from 0 to 1")
    return float(value)


def checked_texts(texts: Any) -> list[str]:
    """Returns stripped texts; raises Refused for empty, too many, too long or invalid ones."""
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "expected a list of texts")
    texts = [text.strip() for text in texts if text.strip()]
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise Refused(400, f"expected 1 to {MAX_TEXTS} texts, not {len(texts)}")
    if max(map(len, texts)) > MAX_LETTERS:
        raise Refused(400, f"a text may have {MAX_LETTERS} letters")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise Refused(400, "a text is not valid Unicode") from error
    return texts


class Number(IntegerConvertor):
    """A number in an address, of so few digits that `int` takes them; an address with more does not exist."""

    regex = "[0-9]{1,18}"


def build(page: Page) -> Starlette:
    """Builds the ASGI application of a page."""
    register_url_convertor("number", Number())
    application = Starlette(
        routes=[
            *(Route(f"/{path}", file(*FILES[path])) for path in FILES),
            Route("/api/about", answered(lambda _: page.about())),
            Route("/api/scenes/{number:number}.png", answered(partial(_scene, page))),
            Route("/api/image", posted(MAX_UPLOAD, page.image), methods=["POST"]),
            Route("/api/image/{name}-{number:number}.png", answered(partial(_square, page))),
            Route("/api/image/{name}.png", answered(lambda r: png(page.held(r.path_params["name"]).pixels))),
            Route("/api/texts", posted(None, page.texts), methods=["POST"]),
            Route("/api/neighbours", posted(None, page.neighbours), methods=["POST"]),
            Route("/api/search", posted(None, page.nearest), methods=["POST"]),
            Route("/api/found/{number:number}.png", answered(lambda r: png(page.thumbnail(r.path_params["number"])))),
        ],
        middleware=[Middleware(Guard)],
        exception_handlers={404: _not_found, 405: _not_found},
    )
    application.state.uploads, application.state.requests = Places("receiving"), Places("busy with")
    return application


Endpoint = Callable[[Request], Awaitable[Response]]


def answered(function: Callable[[Request], Any]) -> Endpoint:
    """The endpoint of a function of the request, which runs in a thread; its errors become one line."""

    async def endpoint(request: Request) -> Response:
        return await _response(request, partial(function, request))

    return endpoint


def posted(limit: int | None, function: Callable[[Any], dict[str, Any]]) -> Endpoint:
    """The endpoint of a function of the body: bytes up to `limit`, or a JSON object for None."""

    async def endpoint(request: Request) -> Response:
        try:
            if limit is None:
                body = await json_of(request)
            else:
                async with request.app.state.uploads.one():
                    body = await body_of(request, limit)
        except Refused as error:
            return error_response(error.status, str(error))
        except ClientDisconnect:
            return Response()  # nobody receives it
        return await _response(request, partial(function, body))

    return endpoint


async def _response(request: Request, function: Callable[[], Any]) -> Response:
    try:
        async with request.app.state.requests.one():
            answer = await to_thread.run_sync(function)
        return answer if isinstance(answer, Response) else JSONResponse(answer)
    except Refused as error:
        return error_response(error.status, str(error))
    except BadImage as error:
        return error_response(400, printable(str(error)))
    except Exception as error:
        traceback.print_exception(error)
        return error_response(500, f"the server failed ({type(error).__name__}); its terminal has the traceback")


async def _not_found(request: Request, error: Exception) -> Response:
    return error_response(getattr(error, "status_code", 404), "there is no such address")


def file(name: str, media_type: str) -> Endpoint:
    """The endpoint of a file of the page."""
    text = resources.files("detailclip_jax.page").joinpath("assets", name).read_text("utf-8")

    async def endpoint(request: Request) -> Response:
        return Response(text, media_type=media_type)

    return endpoint


def png(pixels: UInt8[np.ndarray, "H W 3"]) -> Response:
    """A response with an image."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return Response(stream.getvalue(), media_type="image/png")


def _scene(page: Page, request: Request) -> Response:
    number = request.path_params["number"]
    if number >= len(page.scenes):
        raise Refused(404, "there is no such scene")
    return png(page.scenes[number]["image"])


def _square(page: Page, request: Request) -> Response:
    seen, number = page.held(request.path_params["name"]).seen, request.path_params["number"]
    if number >= len(seen):
        raise Refused(404, "there is no such model")
    return png(seen[number].square)


def open_scenes() -> list[dict[str, Any]]:
    """The held-out scenes that the page offers; none if the drawings are not installed."""
    try:
        source = Stickers("held_out_pairs", size=SCENE_SIDE, num_scenes=NUM_SCENES)
    except (ImportError, FileNotFoundError):
        return []
    return [source[number] for number in range(NUM_SCENES)]


def open_search(file: Path, models: Sequence[Model]) -> Search:
    """Reads a file of embeddings, and finds the model that computed them.

    Raises ValueError if no model of the page wrote it or if it has no images, and what `embeddings.read` raises.
    """
    table = embeddings.read(file)
    embeddings.check_has_images(file, table)
    for number, model in enumerate(models):
        if model.fingerprint == table.origin.fingerprint:
            return Search(table.of(IMAGE), table.origin.root, number)
    raise ValueError(
        f"{file} was computed with another model ({table.origin}) than those of --checkpoint; give that one too, or "
        "embed the images with one of these (python -m detailclip_jax.embed)"
    )
