"""Commands that say what there is: data, backbones, heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bsdkit.cli.app import DeviceOption, TaxonomyOption, app, command, console, show


@command(app, "dataset")
def dataset_command(
    data: Annotated[Path, typer.Argument(help="BSD folder, folder of class folders, or CSV.")],
    taxonomy: TaxonomyOption = "bst",
) -> None:
    """Show what reading a dataset keeps and drops, and how its classes are filled."""
    from bsdkit.dataset import read_dataset
    from bsdkit.report.tables import dataset_table

    clips, report = read_dataset(data, taxonomy)
    show(dataset_table(clips, report))


@command(app, "backbones")
def backbones_command() -> None:
    """List the backbones: outputs, licence, and whether each is ready here."""
    from bsdkit.backbones.registry import backbone_classes
    from bsdkit.report.tables import backbones_table

    show(backbones_table(backbone_classes()))


@command(app, "doctor")
def doctor_command(device: DeviceOption = "cpu") -> None:
    """Say what is ready here and, for each backbone that is not, what to do."""
    from bsdkit.backbones.diagnosis import print_doctor
    from bsdkit.backbones.registry import backbone_classes
    from bsdkit.device import check_device

    check_device(device)
    print_doctor(console(), backbone_classes(), device)


@command(app, "heads")
def heads_command() -> None:
    """List the heads and the parameters that a recipe may set."""
    import dataclasses

    from bsdkit.heads.registry import head_classes, head_parameters
    from bsdkit.heads.training import TrainingOptions

    options = {field.name: field.default for field in dataclasses.fields(TrainingOptions)}

    def shown(parameters: dict[str, Any]) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in parameters.items())

    for name in head_classes():
        parameters = head_parameters(name)
        if options.keys() <= parameters.keys():  # what is as everywhere stands once, below
            parameters = {
                k: v for k, v in parameters.items() if k not in options or v != options[k]
            }
            name += " *"
        typer.echo(f"{name}: {shown(parameters)}")
    typer.echo(f"\n* and: {shown(options)}")
    typer.echo(
        "\nAny member: seeds, validation, confidence (none, linear, shifted, binary), "
        "min_confidence, probabilities; those with * also distill and extra. A member trained "
        "elsewhere is {imported: FEATURE}; see bsdkit import."
    )
