"""Trains many copies of one small network at once, as a stack of replicas in one program."""

from bsdkit.heads.stack.engine import train_replicas
from bsdkit.heads.stack.options import TrainingOptions
from bsdkit.heads.stack.replica import Replica, TrainedReplica, TrainingData

__all__ = ["Replica", "TrainedReplica", "TrainingData", "TrainingOptions", "train_replicas"]
