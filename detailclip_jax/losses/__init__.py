"""The loss functions: pure functions of arrays, independent of models, one file per equation or family of losses."""
