"""Is the reward identified? What is assumed, what a log can test, how far the answer could be off.

`diagnose` puts together the tests of `counts` (feedback alone), `residuals` and `cross_row` (with predictions) and the
band of `sensitivity`; `text` holds the words.
`evaluation.log_diagnosis` applies it to logs and saved models.
"""

from irm_fast.diagnostics.cross_row import CrossRow, cross_row_dependence
from irm_fast.diagnostics.diagnosis import Check, Diagnosis, Sensitivity, diagnose

__all__ = ["Check", "CrossRow", "Diagnosis", "Sensitivity", "cross_row_dependence", "diagnose"]
