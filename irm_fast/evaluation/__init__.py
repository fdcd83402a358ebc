"""Scoring, evaluation, and the diagnosis of a log or of a model on a log. First file to open: `evaluation`."""
