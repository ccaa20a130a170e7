"""Fields of what a run writes besides metrics.jsonl and checkpoints; none of them changes what is computed."""

from detailclip_jax.config.fields import OURS, Field, Group

LOGGING: Group = {
    "images_every": Field(
        500, "steps between two images of attention and kept patches in TensorBoard; 0: no images", OURS
    ),
    "wandb": Field(
        "",
        "project of Weights & Biases that also gets metrics, images and config (pip install wandb; "
        "WANDB_MODE=offline works without network); '': none",
        OURS,
    ),
}
