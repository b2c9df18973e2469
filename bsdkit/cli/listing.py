"""Commands that say what there is: data, backbones, heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from bsdkit.cli.app import (
    DeviceOption,
    KeepColumnsOption,
    TaxonomyOption,
    app,
    command,
    console,
    show,
    split_names,
)


@command(app, "dataset")
def dataset_command(
    data: Annotated[Path, typer.Argument(help="BSD folder, folder of class folders, or CSV.")],
    taxonomy: TaxonomyOption = "bst",
    keep_columns: KeepColumnsOption = "",
) -> None:
    """Show what reading a dataset keeps and drops, and how its classes are filled."""
    from bsdkit.dataset import read_dataset
    from bsdkit.report.tables import dataset_table

    clips, report = read_dataset(data, taxonomy, keep_columns=split_names(keep_columns))
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
    import os
    import platform

    from bsdkit.backbones.diagnosis import diagnose, free_bytes, gpus, package_versions
    from bsdkit.backbones.registry import backbone_classes
    from bsdkit.backbones.weights import weights_folder
    from bsdkit.device import check_device

    check_device(device)
    say, versions, cards = console().print, package_versions(), gpus()
    say(
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors, {free_bytes('cpu') / 1e9:.1f} GB of memory free"
    )
    for name, (model, free) in cards.items():
        say(f"{name} {model}, {free / 1e9:.1f} GB free")
    if not cards:
        say(f"no CUDA device that torch {versions['torch']} can use")
    say("  ".join(f"{package} {version}" for package, version in versions.items()))
    say(f"weight files are kept in {weights_folder()} (BSDKIT_WEIGHTS changes that)")
    diagnoses = diagnose(backbone_classes(), device)
    width = max(len(diagnosis.name) for diagnosis in diagnoses)
    for diagnosis in diagnoses:
        style = {"ready": "green", "to fetch": "cyan"}.get(diagnosis.state, "yellow")
        say(f"{diagnosis.name:{width}}  {diagnosis.state}", style=style)
        if diagnosis.advice:
            say(f"{'':{width}}    {diagnosis.advice}")


@command(app, "heads")
def heads_command() -> None:
    """List the heads and the parameters that a recipe may set."""
    import dataclasses

    from bsdkit.heads.registry import head_classes, head_parameters
    from bsdkit.heads.training import TrainingOptions
    from bsdkit.recipe.schema import MemberRecipe

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
    beside = []
    for key, info in MemberRecipe.model_fields.items():
        if key not in ("head", "features", "imported", "distill", "extra"):
            choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
            beside.append(key + f" ({', '.join(choices)})" * bool(choices))
    typer.echo(
        f"\nAny member: {', '.join(beside)}; those with * also distill and extra. A member trained "
        "elsewhere is {imported: FEATURE}; see bsdkit import."
    )
