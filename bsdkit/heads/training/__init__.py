"""Trains many copies of one small network at once, as a stack of replicas in one program."""

from bsdkit.heads.training.engine import train_replicas
from bsdkit.heads.training.options import TrainingOptions
from bsdkit.heads.training.replica import Replica, TrainedReplica, TrainingData

__all__ = ["Replica", "TrainedReplica", "TrainingData", "TrainingOptions", "train_replicas"]
