"""Dense tasks: segmentation and detection on the patch features of any image encoder.

`dense_experiment.DenseTask` is the record of what differs between the two: data, network, loss, inference, metric, and
what a reader sees.  `segmentation/segmentation_task.py` and `detection/detection_task.py` have one each.  Everything
else is written once: `dense_experiment` (state, step, batches, evaluation), `fine_tuning` (optimiser and update),
`dense_loop` (what the training loop asks for), `dense_report`.  Users call `runs`, `predictions`, `prediction_figures`.
"""
