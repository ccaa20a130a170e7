"""Small sources in their real layouts, written by the tests: images, tars, zips, tables."""

import io
import itertools
import json
import tarfile
import zipfile

import numpy as np
from PIL import Image


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def jpeg(number=0, width=24, height=16):
    """A JPEG of its own for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels).resize((width, height)), "JPEG")


def png(number=0, width=24, height=16, mode="RGB"):
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels).convert(mode), "PNG")


def encoded(image, form):
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def write_json(path, value):
    return write(path, json.dumps(value))


def write_tar(path, members, mode="w"):
    """(name, bytes) or ready TarInfos, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def write_zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def sample(key, number, caption="a picture", **fields):
    """The three members that img2dataset writes for an example."""
    fields = {"caption": caption, "key": key, "status": "success", **fields}
    return [
        (f"{key}.jpg", jpeg(number)),
        (f"{key}.txt", caption.encode()),
        (f"{key}.json", json.dumps(fields).encode()),
    ]


def webdataset(folder, num_tars=3, per_tar=7):
    """Tars as img2dataset names them: 00000.tar with 000000000.jpg, .txt, .json, ..."""
    for tar in range(num_tars):
        members = [
            member
            for n in range(per_tar)
            for member in sample(f"{tar:05d}{n:04d}", 100 * tar + n, f"picture {n} of tar {tar}")
        ]
        write_tar(folder / f"{tar:05d}.tar", members)
    return folder
