"""Evaluators, the metrics they count, and the final report."""
