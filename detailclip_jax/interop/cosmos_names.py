"""Parameter names of COSMOS's published checkpoints: open_clip's names and those of its pools, student and teacher.

A checkpoint holds both as complete state dicts, "student" and "teacher". Here the teacher has the encoders and their
projections; its copies of the pools, token mappings and scales, which nothing uses, are the student's in an export.
"""

from detailclip_jax.interop import openai
from detailclip_jax.interop.measure import Spec
from detailclip_jax.interop.tables import SAME, Entry, Table, cross_pool, linear, within

STUDENT, TEACHER = "student", "teacher"
PARTS = (STUDENT, TEACHER)
UNUSED = (r"(logit|distill_logit)_scale", r"(image|text)_token_mapping\..*", r"(.*[._])?attn_cross_pool\..*")


def heads() -> list[Entry]:
    """Token mappings, pools and the second scale. Image crops attend to words, texts to patches."""
    return [
        *linear("word_projection/proj", "text_token_mapping"),
        *linear("patch_projection/proj", "image_token_mapping"),
        *cross_pool("image_pool", "text_attn_cross_pool"),
        *cross_pool("text_pool", "visual.attn_cross_pool"),
        Entry("distill_scale/value", "distill_logit_scale", SAME),
    ]


def cosmos_table(spec: Spec) -> Table:
    """A COSMOS checkpoint."""
    clip = [*openai.image(spec.size.depth), *openai.text(spec.size.text_depth)]
    teacher = [entry for entry in clip if entry.path != "logit_scale/value"]
    rest = {entry.key for entry in (*clip, *heads())} - {entry.key for entry in teacher}
    return Table(
        within(STUDENT, [*clip, *heads()]),
        within(TEACHER, teacher),
        echoes={f"{TEACHER}.{key}": f"{STUDENT}.{key}" for key in sorted(rest)},
    )
