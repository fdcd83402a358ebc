"""Is the reward identified? What is assumed, what a log can test, how far the answer could be off.

`diagnosis` puts together the tests of `counts` (feedback alone), `residuals` and `cross_row` (with predictions) and the
band of `sensitivity`; `text` holds the words; `logs` applies it to logs and saved models.
"""

from irm_fast.diagnostics.cross_row import CrossRow, cross_row_dependence
from irm_fast.diagnostics.diagnosis import Diagnosis, Sensitivity, Test, diagnose

__all__ = ["CrossRow", "Diagnosis", "Sensitivity", "Test", "cross_row_dependence", "diagnose"]
