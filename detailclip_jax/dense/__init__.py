"""Dense tasks: segmentation and detection on the patch features of any image encoder."""
