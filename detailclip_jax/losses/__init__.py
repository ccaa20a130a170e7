"""The equations of the paper, one file each: pure functions of arrays that never see a model."""
