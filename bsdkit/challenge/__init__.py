"""DCASE 2026 Task 1: the files of a submission, written and checked."""

from bsdkit.backbones.cards import Resource
from bsdkit.backbones.uses import BackboneUse, backbone_uses
from bsdkit.challenge.findings import Findings
from bsdkit.challenge.meta_check import check_metadata
from bsdkit.challenge.metadata import (
    TO_FILL,
    Affiliation,
    Author,
    ExternalDataset,
    Member,
    System,
    write_metadata,
)
from bsdkit.challenge.output import check_output, read_ids, write_output
from bsdkit.challenge.submission import check_submission, system_files

__all__ = [
    "TO_FILL",
    "Affiliation",
    "Author",
    "BackboneUse",
    "ExternalDataset",
    "Findings",
    "Member",
    "Resource",
    "System",
    "backbone_uses",
    "check_metadata",
    "check_output",
    "check_submission",
    "read_ids",
    "system_files",
    "write_metadata",
    "write_output",
]
