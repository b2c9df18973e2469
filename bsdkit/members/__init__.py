"""Members: a head with its inputs and settings, trained over folds and seeds."""

from bsdkit.members.member import MemberModel, MemberResult, predict_member, train_members
from bsdkit.members.plan import Inputs, MemberPlan, Task

__all__ = [
    "Inputs",
    "MemberModel",
    "MemberPlan",
    "MemberResult",
    "Task",
    "predict_member",
    "train_members",
]
