"""Images with instances: sets in COCO's format, sticker scenes, augmentation, fixed shapes and batches."""
