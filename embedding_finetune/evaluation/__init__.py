"""Evaluation: metrics, significance tests, saved results, plots and the report page."""
