"""Heads: small models from features to class probabilities, with scikit-learn's contract."""

from bsdkit.heads.registry import get_head_class, head_classes, make_head, register

__all__ = ["get_head_class", "head_classes", "make_head", "register"]
