"""Is the reward identified? What is assumed, what a log can test, how far the answer could be off.

`diagnosis` puts together the checks, one a function. Of feedback alone, or better with predictions: `counts` (pairs of
signals, labels, known propensities), `order` (funnels), `context` (time, place, segments, session and user on rows that
are `proven`), `segments` (broken buttons), `recording` (rows that were not logged, or twice), `users`. With predictions
alone: `residuals`, `cross_row`, `learned`. `ranges` and `sensitivity` say how far the answer could move; `arguments`
checks what is given; `text` holds the words. `irm_fast.evaluation.log_diagnosis` applies it to logs and saved models.
"""

from irm_fast.diagnostics.cross_row import CrossRow, cross_row_dependence
from irm_fast.diagnostics.diagnosis import diagnose
from irm_fast.diagnostics.ranges import Sensitivity
from irm_fast.diagnostics.result import Diagnosis
from irm_fast.diagnostics.subject import Check

__all__ = ["Check", "CrossRow", "Diagnosis", "Sensitivity", "cross_row_dependence", "diagnose"]
