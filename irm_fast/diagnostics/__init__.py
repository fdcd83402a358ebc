"""Is the reward identified? What is assumed, what a log can test, how far the answer could be off.

`diagnosis` puts together the checks of `counts` (of feedback alone), `residuals` and `cross_row` (with predictions)
and `sensitivity`; `text` holds the words. `irm_fast.evaluation.log_diagnosis` applies it to logs and saved models.
"""

from irm_fast.diagnostics.cross_row import CrossRow, cross_row_dependence
from irm_fast.diagnostics.diagnosis import diagnose
from irm_fast.diagnostics.result import Diagnosis, Sensitivity
from irm_fast.diagnostics.subject import Check

__all__ = ["Check", "CrossRow", "Diagnosis", "Sensitivity", "cross_row_dependence", "diagnose"]
