"""Unbiased reward models from clicks, copies and shares."""

from irm_fast.backends import backends
from irm_fast.functional import implicit_rm_loss, stratify
from irm_fast.linear import linear_implicit_rm_loss
from irm_fast.modules import ImplicitRMLoss

__version__ = "0.1.0"
__all__ = ["ImplicitRMLoss", "backends", "implicit_rm_loss", "linear_implicit_rm_loss", "stratify"]
