r"""Imports a PyTorch checkpoint as a workdir for evaluation, notebooks and training.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.import_torch --from=reference detailclip_vitb16.pt --out=runs/detailclip
    python -m detailclip_jax.import_torch --from=mae mae_pretrain_vit_base.pth --out=runs/mae --image-size=512
    python -m detailclip_jax.import_torch timm:vit_base_patch16_clip_224.openai --out=runs/clip_image
    python -m detailclip_jax.import_torch --from=tips tips_oss_b14_highres_distilled_vision.npz --out=runs/tips \
        --image-size=448

FORMAT is the layout of the tensors: reference (DetailCLIP), aclip, flair, slip, clip (of SLIP's family), openai,
longclip, open_clip, openvision, cosmos, huggingface, big_vision (SigLIP), pe, fgclip (its short text side),
fgclip_long, fgclip2, fgclip2_box, fgclip2_long, tips, dinotxt, mae, dinov2, dinov3, ibot, dino, timm, or safetensors
(written by export).  Without --from it is inferred from their names.  The tensors of an encoder alone of MAE, DINO or
iBOT have timm's names: give --from, or it gets timm's preprocessing.  Sizes are inferred from the shapes.  Only tensors
are loaded: a file that would execute code is refused.
To continue training from DIR:
`python -m detailclip_jax.main --config=configs/vitb16_continue.py --config.init=DIR`.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detailclip_jax.runtime import errors
from detailclip_jax.runtime import parser as flags

if TYPE_CHECKING:
    from detailclip_jax.types import Params

OF_COMMAND = ("file", "layout", "out")  # arguments that are not options of `interop.load`


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    command = flags.parser("import_torch", __doc__)
    add = command.add_argument
    files = (
        "a PyTorch, TorchScript, safetensors or npz file, its folder, or the folder of TIPS's or dino.txt's two files"
    )
    add("file", metavar=flags.EITHER, help=files)
    add("--from", dest="layout", metavar="FORMAT", help="layout of the tensors, see above (default: by their names)")
    add("--out", required=True, metavar="DIR", help="the workdir to write, with one checkpoint of step 0")
    flags.add_image_size(command)
    heads = "attention heads of the image encoder (cannot be inferred from the tensors; default: usual for its width)"
    add("--num-heads", type=flags.positive, metavar="N", help=heads)
    add("--text-heads", type=flags.positive, metavar="N", help="attention heads of the text encoder")
    decoder = "attention heads of DetailCLIP's decoder (default: 16, or 4 if it is narrow)"
    add("--decoder-heads", type=flags.positive, metavar="N", help=decoder)
    add("--activation", metavar="NAME", help="of both encoders: gelu, quick_gelu, gelu_tanh or relu")
    add("--text-activation", metavar="NAME", help="of the text encoder alone")
    pooling = "how the image feature is computed: the CLS token, the mean of the patches before or after the last norm"
    add("--pooling", choices=("cls", "mean", "norm_of_mean"), help=pooling)
    pixels = "mean and standard deviation of the pixels"
    add("--normalisation", choices=("imagenet", "clip", "satellite", "half", "none"), help=pixels)
    add("--tokenizer", metavar="FILE", help="tokenizer.json or *.model of a vocabulary other than CLIP's")
    flags.add_preprocessing(command, "as its config or its family does")
    return command


def run(arguments: argparse.Namespace) -> int:
    """Loads, checks and converts the checkpoint, writes the workdir and prints a summary; returns 0."""
    from detailclip_jax.interop import own_safetensors, published
    from detailclip_jax.training import published_names

    options = {name: value for name, value in vars(arguments).items() if name not in OF_COMMAND}
    file, name, origin = Path(arguments.file), Path(arguments.file).name, None
    if published_names.is_remote(arguments.file):
        name = arguments.file
        file, origin = published.download(name)
    variables, config = published.convert(file, Path(arguments.out), name, arguments.layout, **options)
    if origin:
        published.write_origin(Path(arguments.out), name, origin)
    print("\n".join(summary(variables, config, published_code=not own_safetensors.is_own_format(file))))
    print(f"written to {arguments.out}")
    return 0


def summary(variables: "dict[str, Params]", config: Any, published_code: bool = True) -> list[str]:
    """Returns lines that describe the model; also what differs if published code wrote the file, and not `export`."""
    from detailclip_jax import methods
    from detailclip_jax.data import preprocessing
    from detailclip_jax.models.vit import INITIAL, Style

    model, counts = config.model, {name: _count(variables[name]) for name in ("params", "ema_params")}
    size = model.size if model.size != "custom" else ", ".join(f"{k} {v}" for k, v in model.custom.items())
    teacher = f"{counts['ema_params']:,} in {', '.join(variables['ema_params'])}" if counts["ema_params"] else "none"
    rotary = model.image_style.positions == "rotary"
    style = ", ".join(f"{name} {model.image_style[name]}" for name in Style._fields if name not in INITIAL)
    lines = [
        f"method      {config.method}",
        f"size        {size}; {model.image_size} px; positions for other sizes: "
        f"{'rotary' if rotary else model.interpolation}",
        f"heads       {heads(variables, config)}",
        f"encoder     {style}",
        *([f"text        activation {model.text_activation}"] if "text" in variables["params"] else []),
        f"preprocess  {preprocessing.description(config)}",
        f"parameters  {counts['params']:,} in {', '.join(variables['params'])}",
        f"teacher     {teacher}",
    ]
    if not published_code:
        return lines
    method = methods.build(config)
    if method.centers:
        lines.append("centers     zero: the reference does not save them")
    return lines + (published(config) if method.masks_by_attention else [])


def published(config: Any) -> list[str]:
    """Returns lines that state the config's masking, views and captions, in which published code differs."""
    masking, data = config.masking, config.data
    removed = f"masking     {masking.ratio:g} of the patches are removed, by {masking.granularity}"
    scale = "-".join(f"{share:g}" for share in config.views.crops.large.scale)
    cut = "keep their EOT" if data.keep_eot else "lose their EOT"
    return [
        f"{removed}; the published mask_ratio, {1 - masking.ratio:g} here, is the share kept",
        f"views       crop scale {scale}; caption {data.caption}; captions that are cut {cut}",
    ]


def heads(variables: "dict[str, Params]", config: Any) -> str:
    """Formats the numbers of attention heads, which cannot be inferred from the shapes.

    Asks the user to check them; narrow networks have caused a warning before.
    """
    from detailclip_jax.config.sizes import size_of
    from detailclip_jax.interop.model_sizes import HEADS

    size = size_of(config.model)
    towers = {"image": size.num_heads, "text": size.text_heads, "decoder": size.decoder_heads}
    numbers = ", ".join(f"{name} {number}" for name, number in towers.items() if name in variables["params"])
    options = "--num-heads, --text-heads, --decoder-heads"
    return numbers + (
        f": cannot be inferred from the tensors, so check it ({options})" if size.width >= min(HEADS) else ""
    )


def _count(params: "Params") -> int:
    from detailclip_jax.interop.key_tables import flatten

    return sum(int(value.size) for value in flatten(params).values())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if the disk failed, 2 for invalid usage, 130 if interrupted."""
    return errors.run(lambda: run(parser().parse_args(argv)), kept="nothing is written")


if __name__ == "__main__":
    sys.exit(main())
