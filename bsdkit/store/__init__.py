"""Stores: what they hold, how they are written, read, checked and filled from elsewhere."""

from bsdkit.store.feature import FAILED, OK, PARTIAL, FeatureInfo, FeatureRows
from bsdkit.store.store import Features, Store

__all__ = ["FAILED", "OK", "PARTIAL", "FeatureInfo", "FeatureRows", "Features", "Store"]
