"""Images with a class number per pixel: sets, label maps, augmentation and batches."""
