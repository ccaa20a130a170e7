"""Checks images during preparation; keeps them unchanged or reduces their size."""

import io

from PIL import Image

from detailclip_jax.convert.examples import Rejected
from detailclip_jax.convert.job import Options
from detailclip_jax.data.decoding import BUDGET, MAX_FILE_PIXELS, BadImage, Encoded, opened
from detailclip_jax.data.image_operations import resize_part
from detailclip_jax.data.views import REDUCING_GAP

QUALITY = 95  # of a re-encoded JPEG
CHECKS = ("decode", "header")


def checked(data: bytes, options: Options) -> tuple[bytes, int, int]:
    """Returns the image file to keep, its width and its height.

    `options.check` "decode" decodes every pixel, as training will; "header" only reads the header.  If the longer side
    exceeds `options.max_side`, the image is resized (Pillow's bicubic) and stored as JPEG.  This also accepts images
    that are too large for training, up to `decoding.MAX_FILE_PIXELS`.  Raises Rejected, with the reason, for exactly
    the images that training and evaluation reject.
    """
    try:
        if options.max_side:
            image = opened(data, max_whole=MAX_FILE_PIXELS)
            if max(image.header.size) > options.max_side:
                with BUDGET.scope():
                    return _smaller(image, options.max_side)
        image = opened(data)
        if options.check == "decode":
            image.decoded()
    except BadImage as error:
        raise Rejected(str(error)) from error
    return data, *image.header.size


def _smaller(image: Encoded, side: int) -> tuple[bytes, int, int]:
    """Returns the image resized so that its longer side, which is larger, has `side` pixels.

    A JPEG is first reduced as in Pillow's `Image.thumbnail`.  If it must be reduced further because it cannot be held
    whole, the result may be smaller than `side`.
    """
    longer = max(image.height, image.width)
    decoded = image.decoded(longer / (REDUCING_GAP * side))
    height, width = (max(1, round(side / longer * length)) for length in (image.height, image.width))
    height, width = min(height, decoded.pixels.shape[0]), min(width, decoded.pixels.shape[1])
    whole = decoded.within((0, 0, image.width, image.height))
    encoded = io.BytesIO()
    Image.fromarray(resize_part(decoded.pixels, whole, height, width)).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue(), width, height
