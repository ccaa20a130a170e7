"""Opens a local page to explore trained models: captions, heat maps, attention, similar patches, search.

    python -m detailclip_jax.demo --checkpoint=runs/stickers
    python -m detailclip_jax.demo --checkpoint=runs/stickers --checkpoint=runs/clip --embeddings=runs/photos.npz

The page needs no network, and only this machine can open it.  Images are decoded by the rules of training; those that
you drop are not written to disk.  --embeddings is a file that `embed --out=FILE` wrote with one of the models.  Several
checkpoints are shown side by side.  Ctrl-C ends the server.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from detailclip_jax.runtime import errors, extras
from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.progress import Console

PORT = 8462
HOST = "127.0.0.1"
SHUTDOWN = 1  # seconds in which open requests may end
NO_CHECKPOINT = (
    "give --checkpoint=DIR, the workdir of a trained model. To get one: python -m detailclip_jax.main "
    "--config=stickers --workdir=runs/stickers (about ten minutes on two cores), or python -m "
    "detailclip_jax.import_torch ViT-B-16.pt --out=runs/openai for a PyTorch checkpoint"
)


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    command = flags.parser("demo", __doc__, usage="%(prog)s --checkpoint DIR [flags]")
    add = command.add_argument
    add("--checkpoint", action="append", default=[], metavar=flags.MODEL, help=f"{flags.A_MODEL}; may be repeated")
    add("--step", type=int, metavar="N", help="step of the checkpoints (default: the last)")
    add("--embeddings", type=Path, metavar="FILE", help="search this file, which `embed --out=FILE` wrote")
    flags.add_follow_links(command)
    readout = (
        "read-out of the heat maps, which the page can change (default: the one that `evaluate` found best for the "
        "checkpoint, else naclip; of dinotxt plain)"
    )
    add("--readout", metavar="NAME", help=readout)
    add("--port", type=port, default=PORT, metavar="N", help=f"port of the page; 0: any free one (default: {PORT})")
    flags.add_weights(command)
    return command


def port(text: str) -> int:
    """Parses a port, as the `type` of a flag."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 65535")
    return int(text)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Loads the models, compiles, and serves the page until Ctrl-C."""
    if not arguments.checkpoint:
        raise ValueError(NO_CHECKPOINT)
    for name in ("starlette", "uvicorn"):
        extras.load(name, f"the page needs {name}", "demo")
    with listening(arguments.port) as at:
        from detailclip_jax.inference import model as inference
        from detailclip_jax.inference.readout_maps import check_readout
        from detailclip_jax.interop import published
        from detailclip_jax.page import app

        if arguments.readout:
            check_readout(arguments.readout)
        workdirs = [published.fetch(name, console.say) for name in arguments.checkpoint]
        loaded = [inference.load(workdir, arguments.weights, arguments.step) for workdir in workdirs]
        models = [each.on_squares() for each in loaded]
        for model in models:
            console.say(f"{model.path}: {model.config.method}, step {model.step}, {model.weights} weights")
        search = app.open_search(arguments.embeddings, models) if arguments.embeddings else None
        page = app.Page(models, search, app.open_scenes(), arguments.readout)
        if not page.scenes:
            console.warn(extras.missing("no scenes to pick from", "demo"))
        began = time.perf_counter()
        console.live("compiling: seconds for a tiny model, a minute for a large one ...")
        page.warm_up()
        console.say(f"compiled in {time.perf_counter() - began:.1f} s")
        serve(app.build(page), at, console)
    return 0


def listening(number: int) -> socket.socket:
    """Opens the port on this machine; raises OSError that says how to choose another."""
    at = socket.socket()
    at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        at.bind((HOST, number))
        at.listen()  # a second page cannot take the port; browsers wait until the first one is ready
        return at
    except OSError as error:
        at.close()
        reason = error.strerror or error
        raise OSError(f"port {number}: {reason}; choose another with --port=N (0: any free one)") from error


def serve(application, at: socket.socket, console: Console) -> None:
    """Serves until the process ends; an error ends the server first."""
    import uvicorn

    options = {"log_config": None, "access_log": False, "lifespan": "off", "ws": "none", "http": "h11"}
    config = uvicorn.Config(application, timeout_graceful_shutdown=SHUTDOWN, **options)
    server = uvicorn.Server(config)
    # In another thread than the main one, uvicorn leaves the signals alone.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        if not server.started:
            raise errors.RunError("the page's server could not start; its error is printed above")
        console.say(f"the page is at http://localhost:{at.getsockname()[1]} (Ctrl-C ends it)")
        thread.join()
    finally:
        server.should_exit = True
        thread.join(SHUTDOWN + 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors that a user can correct are printed without a traceback."""
    return errors.run(lambda: run(parser().parse_args(argv), Console()))


if __name__ == "__main__":
    sys.exit(main())
