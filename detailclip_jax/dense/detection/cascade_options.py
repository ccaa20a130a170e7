"""The numbers of Cascade Mask R-CNN; the defaults are those of the COCO protocol (iBOT's and mmdet's recipe)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Options:
    """Numbers of samples, thresholds, weights and widths; small values give tiny models.

    The strides of the pyramid follow from the encoder's patch size p: p / 4, p / 2, p, 2 p, 4 p (4 to 64 for 16).
    Raises ValueError for values that cannot work together.
    """

    # pixels and encoder
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of pixels in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    blocks: tuple[int, ...] = ()  # four encoder blocks for the pyramid; empty: `models.taps.usual_blocks`
    positions: tuple[int, int] | None = None  # grid of the encoder's learnt positions; None: the encoder's
    norm: bool = False  # the encoder's final norm on every tap
    width: int = 256  # of the pyramid and of all convolutions

    # anchors and region proposals
    anchor_scale: float = 8.0  # sqrt(area) of an anchor in strides of its level
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_min_positive_iou: float = 0.3  # of the best anchor of an object that no anchor fits well
    rpn_samples: int = 256  # anchors per image in the loss
    rpn_positive_ratio: float = 0.5
    rpn_beta: float = 1 / 9  # where smooth L1 turns from quadratic to linear
    rpn_nms: float = 0.7
    candidates_train: int = 2000  # best anchors per level before NMS
    candidates_test: int = 1000
    proposals_train: int = 2000  # per image after NMS
    proposals_test: int = 1000

    # cascade
    stage_ious: tuple[float, ...] = (0.5, 0.6, 0.7)
    stage_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    stage_stds: tuple[tuple[float, ...], ...] = (
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    )
    unroll: bool | None = None  # whether the stages run one by one, not in a loop over one; None: on CPUs (a loop here)
    roi_samples: int = 512  # RoIs per image in the loss
    roi_positive_ratio: float = 0.25
    ignore_iof: float = -1.0  # a candidate with more of its area in a crowd box is left out; -1 keeps all, as mmdet
    finest_scale: float = 14.0  # in strides of the finest level, which pools RoIs of sqrt(area) below twice this
    roi_size: int = 7
    roi_cells: int = 1280  # places of a level that one RoI may cover, see `roi_align`
    roi_chunk: int = 64  # RoIs per image pooled at once; fewer need less memory
    num_convs: int = 4
    fc_width: int = 1024
    box_weight: float = 10.0  # of the GIoU loss
    mask_roi_size: int = 14
    mask_convs: int = 4

    # test
    score_threshold: float = 0.05
    nms: float = 0.5
    max_per_image: int = 100

    def __post_init__(self) -> None:
        """Checks lengths and ranges."""
        for name in ("stage_ious", "stage_weights", "stage_stds"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} {getattr(self, name)}: the cascade has three stages")
        if self.blocks and len(self.blocks) != 4:
            raise ValueError(f"blocks {self.blocks}: the pyramid needs four encoder blocks, or () for the usual ones")
        for name in ("rpn_samples", "roi_samples", "roi_chunk", "roi_cells", "max_per_image", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("rpn_positive_ratio", "roi_positive_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be greater than 0 and at most 1")

    @property
    def positives(self) -> int:
        """Slots of an image's RoI sample that can hold positive RoIs; the mask heads see only these."""
        return max(int(self.roi_samples * self.roi_positive_ratio), 1)
