"""Pictures on their way in: looked at, kept as they are or made smaller."""

import io

from PIL import Image

from detailclip_jax.data.decoding import BUDGET, MAX_FILE_PIXELS, BadImage, Encoded, opened
from detailclip_jax.data.images import resize_part
from detailclip_jax.data.prepare.job import Options
from detailclip_jax.data.prepare.records import Rejected
from detailclip_jax.data.views import REDUCING_GAP

QUALITY = 95  # of a JPEG that had to be encoded again
CHECKS = ("decode", "header")


def checked(data: bytes, options: Options) -> tuple[bytes, int, int]:
    """The file to keep, and its width and height.

    `options.check` "decode" decodes every pixel, as training will; "header" believes the header.  Where the longer
    side exceeds `options.max_side` the picture is made smaller (Pillow's bicubic) and becomes a JPEG; that takes also
    what training refuses as too large, up to `decoding.MAX_FILE_PIXELS`.  Raises Rejected with the reason, for all that
    training and evaluation refuse and for nothing else.
    """
    try:
        if options.max_side:
            picture = opened(data, max_whole=MAX_FILE_PIXELS)
            if max(picture.header.size) > options.max_side:
                with BUDGET.scope():
                    return _smaller(picture, options.max_side)
        picture = opened(data)
        if options.check == "decode":
            picture.decoded()
    except BadImage as error:
        raise Rejected(str(error)) from error
    return data, *picture.header.size


def _smaller(picture: Encoded, side: int) -> tuple[bytes, int, int]:
    """The picture again with `side` pixels along the longer one, which is larger than that.

    A JPEG is first reduced as `Image.thumbnail` of Pillow does it; one that has to be reduced further, so as not to be
    held whole, has the pixels that this leaves.
    """
    longer = max(picture.height, picture.width)
    decoded = picture.decoded(longer / (REDUCING_GAP * side))
    height, width = (max(1, round(side / longer * length)) for length in (picture.height, picture.width))
    height, width = min(height, decoded.pixels.shape[0]), min(width, decoded.pixels.shape[1])
    whole = decoded.within((0, 0, picture.width, picture.height))
    encoded = io.BytesIO()
    Image.fromarray(resize_part(decoded.pixels, whole, height, width)).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue(), width, height
