"""Detection and instance segmentation: Cascade Mask R-CNN (arXiv 1906.09756) on any plain ViT of this library.

One concept per file: `boxes`, `anchors`, `assignment`, `sampling`, `nms`, `roi_align` and `masks` are functions;
`backbone`, `fpn`, `rpn`, `roi_heads` and `cascade` are networks; `detector` joins all of it and states the shapes of
its input and output.

Every array has a fixed shape. Boxes are xyxy in pixels of the (resized) image that the network receives; an entry that
holds nothing has label -1 and score 0, or is False in a mask named `valid`.
"""
