"""Pictures on their way in: looked at, kept as they are or made smaller."""

import io

from PIL import Image

from detailclip_jax.data.decoding import BadImage, decode, opened
from detailclip_jax.data.images import resize
from detailclip_jax.data.prepare.job import Options
from detailclip_jax.data.prepare.records import Rejected

QUALITY = 95  # of a JPEG that had to be encoded again
CHECKS = ("decode", "header")


def checked(data: bytes, options: Options) -> tuple[bytes, int, int]:
    """The file to keep, and its width and height.

    `options.check` "decode" decodes every pixel, as training will; "header" believes the header.  Where the longer
    side exceeds `options.max_side` the picture is made smaller (Pillow's bicubic) and becomes a JPEG.  Raises Rejected
    with the reason.
    """
    try:
        width, height = opened(data).header.size
        too_large = bool(options.max_side) and max(width, height) > options.max_side
        if too_large:
            return _smaller(data, options.max_side)
        if options.check == "decode":
            decode(data)
    except BadImage as error:
        raise Rejected(str(error)) from error
    return data, width, height


def _smaller(data: bytes, side: int) -> tuple[bytes, int, int]:
    """The picture again with `side` pixels along the longer one, which is larger than that."""
    image = decode(data)
    height, width = image.shape[:2]
    scale = min(1, side / max(height, width))
    height, width = max(1, round(scale * height)), max(1, round(scale * width))
    encoded = io.BytesIO()
    Image.fromarray(resize(image, height, width)).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue(), width, height
