"""What all commands share: the application, options that several take, exit codes."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bsdkit.errors import BsdkitError
from bsdkit.location import as_location, is_remote, readable
from bsdkit.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from bsdkit.report.table import Table


app = typer.Typer(
    name="bsdkit",
    help="Embed once, ablate in seconds: frozen embeddings, CPU-cheap heads, honest scores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
store_app = typer.Typer(
    help="Look into a store, check it, fill it from elsewhere.", no_args_is_help=True
)
app.add_typer(store_app, name="store")

USER_ERROR, WORK_FAILED, INTERRUPTED, OUR_ERROR = 2, 1, 130, 70
"""Exit codes: errors that the user can fix; some clips failed; Ctrl-C; a bug of bsdkit."""

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", parser=as_location, metavar="PLACE",
        help="Store folder or URL; default cache/NAME of the data.",
    ),
]  # fmt: skip
StoreArgument = Annotated[
    Path, typer.Argument(parser=as_location, metavar="STORE", help="A store folder or its URL.")
]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data", parser=as_location, metavar="PLACE",
        help="BSD folder, folder of class folders, or CSV; or its URL.",
    ),
]  # fmt: skip
TaxonomyOption = Annotated[
    str, typer.Option(help="'bst', 'flat' (labels found are classes), or a CSV.")
]
KeepColumnsOption = Annotated[
    str,
    typer.Option(
        "--keep-columns",
        metavar="A,B",
        help="Further columns of the metadata that the store keeps, e.g. for folds.",
    ),
]
ReplaceOption = Annotated[
    bool,
    typer.Option("--replace", help="Let the data take another dataset's place in the store."),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, e.g. runs/starter.")]
FittedStoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", parser=as_location, metavar="PLACE",
        help="The store that it was fitted on; default the recipe's.",
    ),
]  # fmt: skip
RunsOption = Annotated[Path, typer.Option(help="Folder of runs.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Train again what was trained before.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")]
MapOption = Annotated[
    str,
    typer.Option(
        "--map",
        help="Features and stores to use instead of those that a recipe names: NAME=NAME,... or "
        "a .yaml file.",
    ),
]


def console(*, stderr: bool = False) -> Console:
    """A console for tables and lines; where it is not a terminal, nothing is cut or broken."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 1000
    return Console(stderr=stderr, width=width, highlight=False, markup=False)


def show(*tables: Table) -> None:
    """Prints tables."""
    out = console()
    for table in tables:
        table.to_rich(out)


def command(parent: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command whose expected errors become one line and an exit code."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except BsdkitError as error:
                typer.echo(f"error: {readable(str(error))}", err=True)
                raise typer.Exit(USER_ERROR) from None
            except OSError as error:
                where = f" {readable(str(error.filename))}" if error.filename else ""
                typer.echo(f"error: {error.strerror or error}:{where}", err=True)
                raise typer.Exit(USER_ERROR) from None
            except KeyboardInterrupt:
                typer.echo(
                    "interrupted; what was finished is kept, run the same line again", err=True
                )
                raise typer.Exit(INTERRUPTED) from None
            except (typer.Exit, typer.Abort):
                raise
            except Exception:
                traceback.print_exc()
                typer.echo(
                    "error: this is a bug of bsdkit, not of what you typed; please report it with "
                    f"the lines above, the command and the version ({__version__})", err=True,
                )  # fmt: skip
                raise typer.Exit(OUR_ERROR) from None

        return parent.command(name)(guarded)

    return decorate


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"bsdkit {__version__}")
        raise typer.Exit


_NAMES_OF_ANY = set(
    "metadata meta clips dataset data table labels annotations ground_truth info index files "
    "audio audios audio_files sound sounds wav wavs clip recordings samples csv".split()
)


def split_names(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def default_store(data: Path) -> Path:
    """Where a dataset's store is unless the user says so: cache/NAME.

    A name that any dataset may have, such as ``audio`` or ``metadata.csv``, is passed over for
    that of the folder above.
    """
    place = data if is_remote(data) else data.resolve()
    names = [data.stem if data.is_file() else place.name, *(p.name for p in place.parents)]
    own = [n for n in names if n and n.removesuffix(".csv").casefold() not in _NAMES_OF_ANY]
    return Path("cache") / readable((own or names)[0])
