"""Detection and instance segmentation: Cascade Mask R-CNN (arXiv 1906.09756) on any plain ViT of this library.

One concept per file: `boxes`, `anchors`, `assignment`, `sampling`, `nms`, `roi_align` and `masks` are functions;
`backbone`, `fpn`, `rpn`, `roi_heads` and `cascade` are networks; `detector` joins all of it and states the shapes of
its input and output.

Every array has a fixed shape. Boxes are xyxy in pixels of the (resized) image that the network receives; an entry that
holds nothing has label -1 and score 0, or is False in a mask named `valid`.

Differences from mmdet, whose effect on COCO's AP was not measured:

- Within a batch every image is computed as if it were alone, its positions interpolated to its own grid; mmdet computes
  the padding like the image. With one image per batch both agree.
- Losses and BatchNorm are those of the whole batch over all devices.
- Masks are sampled within each box from the stored polygons (112 x 112); mmdet rasterises them at the image's size. On
  random polygons the targets differ in 1.2 % of their entries.
- Proposals without area are dropped, as in newer mmdet; mmdet 2.11, which iBOT's recipe uses, keeps them.
- A RoI that covers more than 1,280 places of its level is pooled from a coarser one: RoIs whose sides differ about 30
  times.
"""
