"""The loss functions as printed: pure functions of arrays, independent of models.

| equation of the paper | function |
|---|---|
| 1-5, image-text contrast | `clip.image_to_text_loss`, `clip.text_to_image_loss`, their mean `clip.clip_loss` |
| 6, CLS tokens | `distillation.cls_divergence` |
| 7, hidden patches | `distillation.patch_divergence` |
| 8, pixels | `reconstruction.pixel_loss` |

Of other methods: `sigmoid` is SigLIP's, `flair` FLAIR's, `simclr` and `byol` are SLIP's and A-CLIP's, `labels` is the
cross-entropy with labels, `token_set` SuperCLIP's, `beta` B-CLIP's, `gram` DINOv3's, `region` CLIPSelf's, `distill`
that of a frozen teacher, `negatives` NegCLIP's, `region_text` FG-CLIP's, `text_contrast` FG-CLIP 2's, `rank` and
`intra_modal` CE-CLIP's. Where the arrays of an equation would be too large, a loss calls a blockwise or chunked
function of `kernels` with the same value and gradient.
"""
