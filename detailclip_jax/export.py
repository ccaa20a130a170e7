"""Exports a checkpoint to a PyTorch, StableHLO or ONNX format.

    python -m detailclip_jax.export --checkpoint=runs/stickers --to=safetensors --out=runs/stickers.safetensors
    python -m detailclip_jax.export --checkpoint=runs/vitb16_yfcc --to=open_clip --out=runs/detailclip-open_clip
    python -m detailclip_jax.export --checkpoint=runs/vitb16_yfcc --to=timm --out=vit.pth --image-size=512

FORMAT is one of
  reference           the DetailCLIP reference's state dict, student and teacher
  slip                CLIP in the state dict of SLIP's family
  cosmos              the checkpoint of COSMOS's code: the state dicts "student" and "teacher"
  flair               the checkpoint of FLAIR's code: encoders, projections, pool, scale and bias
  timm                the image encoder as timm's VisionTransformer, which the reference's dense evaluations read too
                      (DINOv3: as timm's Eva);
                      PATH.json holds the arguments of timm.create_model (heads, sizes) and the preprocessing; with
                      other ones the features differ
  open_clip           a directory for open_clip.create_model_and_transforms("local-dir:.") called in it
                      (image encoders of any size, pooled by a CLS token or mean patches, in our layout or OpenAI's)
  huggingface         a directory for transformers.AutoModel, AutoTokenizer and AutoProcessor.from_pretrained(PATH): a
                      CLIPModel if the image encoder has OpenAI's layout, a SiglipModel if it has SigLIP's, else a
                      VisionTextDualEncoderModel
  safetensors         our own parameter tree with flattened names, and the config in the header
  stablehlo           a directory with encode_image.bin and encode_text.bin for jax.export.deserialize
  onnx                a directory with encode_image.onnx and encode_text.onnx (pip install jax2onnx)
PATH is a file for reference, slip, cosmos, flair, timm and safetensors, a directory for the others.  A file is in
PyTorch's format, or in safetensors format if its name ends in .safetensors.  Beside files of the first five, PATH.json
holds the preprocessing and the attention heads, which import_torch reads.  PyTorch is needed only to write .pth files.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detailclip_jax.runtime import errors, weight_files
from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.files import nothing_left
from detailclip_jax.training import workdirs


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    command = flags.parser("export", __doc__)
    add = command.add_argument
    flags.add_checkpoint(command)
    add("--to", required=True, metavar="FORMAT", help="what to write, see above")
    add("--out", required=True, metavar=flags.EITHER, help="file or folder to write, see above")
    flags.add_weights(command)
    flags.add_image_size(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Loads and writes the model and prints a summary; returns 0.  Removes an incomplete output after an error."""
    from detailclip_jax.interop import formats, model_to_export, published

    fmt, path = formats.named(arguments.to), Path(arguments.out)
    export = model_to_export.load(
        published.fetch(arguments.checkpoint),
        arguments.step,
        arguments.weights,
        arguments.image_size,
        arguments.interpolation,
    )
    if path.exists() and path.is_dir() != fmt.is_directory:
        raise ValueError(f"--out={path} exists and is {'no' if fmt.is_directory else 'a'} directory")
    if fmt.is_directory and workdirs.has_config(path):
        raise ValueError(f"--out={path} is the workdir of a run, which an export would damage; name another --out")
    there = weight_files.model_in(path) if fmt.weights and path.exists() else None
    if there and there.name != fmt.weights:
        raise ValueError(f"--out={path} has the weights {there.name} of another format or library; name another --out")
    if not there and (others := formats.not_of_export(fmt, export, path)):
        raise ValueError(
            f"--out={path} has {', '.join(others)}, which would be replaced, but no {fmt.weights} of an earlier "
            "export; move what is there, or name another --out"
        )
    if arguments.to != "safetensors" and export.config.preprocess.resize == "native":
        raise ValueError(
            "this model sees images in their own aspect (preprocess.resize 'native'), which only --to=safetensors keeps"
        )
    with nothing_left(path):
        written = fmt.write(export, path)
    print("\n".join(formats.summary(arguments.to, export, path, written)))
    print(f"written to {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if the disk failed, 2 for invalid usage, 130 if interrupted."""
    return errors.run(lambda: run(parser().parse_args(argv)), kept="nothing is written")


if __name__ == "__main__":
    sys.exit(main())
