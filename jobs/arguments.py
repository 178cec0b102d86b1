"""Options of a job from the command line: a dataclass in, its instance out, wrong ones in one line."""

# mypy: disable-error-code="valid-type"
# For classes of recipes that are known when it runs: beside a field, the help would show it.

import difflib
import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from pydantic import ValidationError
from tyro.conf import AvoidSubcommands, FlagConversionOff, OmitArgPrefixes, Positional, arg

from pipeline.errors import InputError

POSITIONAL = {str: "{}", str | None: "[{}]", tuple[str, ...]: "{} ..."}
"""How the help calls positional arguments of a type."""


def parse(kind: Any, arguments: list[str], job: str, description: str | None = None) -> Any:
    """Return an instance of dataclass `kind` from the command line; unknown options are one line with the nearest known."""
    _name_positionals(kind)
    settings: dict[str, Any] = {
        "prog": f"terraloom {job}",
        "description": description,
        "config": (AvoidSubcommands, FlagConversionOff),
    }
    try:
        options, unknown = tyro.cli(kind, args=arguments, return_unknown_args=True, **settings)
    except ValidationError as error:
        raise InputError("; ".join(f"{'.'.join(map(str, e['loc'])) or job}: {e['msg']}" for e in error.errors())) from None
    if unknown:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # tyro 1: nothing else lists the options yet
            parser = tyro.extras.get_parser(kind, **settings)
        known = [name for name in parser._option_string_actions if name.startswith("--")]
        close = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise InputError(f"argument '{unknown[0]}' is unknown to 'terraloom {job}'{hint}; see terraloom {job} --help")
    return options


def _name_positionals(kind: Any) -> None:
    """Have the help call positional text by its name, `ARCHIVE` instead of `STR`."""
    marker = Positional[str].__metadata__  # type: ignore[attr-defined]
    for base in kind.__mro__:
        hints = vars(base).get("__annotations__", {})
        for name, hint in hints.items():
            if getattr(hint, "__metadata__", ()) == marker and hint.__origin__ in POSITIONAL:
                hints[name] = Annotated[hint, arg(metavar=POSITIONAL[hint.__origin__].format(name.upper()))]


def parse_recipe(kind: str, name: str, arguments: list[str]) -> Any:
    """Return recipe `name` with options as they are on the command line."""
    from jobs.recipes import load_recipe

    chosen = load_recipe(kind, name)

    @dataclass(frozen=True)
    class Options:
        recipe: OmitArgPrefixes[type(chosen)] = chosen

    return parse(Options, arguments, f"{kind} {name}").recipe


def flat_options(options: dict[str, Any]) -> list[str]:
    """Return options as they are on the command line: {'num_steps': 4} as --num-steps 4."""
    found = []
    for name, value in options.items():
        found += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return found


def recipe_of(kind: str, arguments: list[str], job: str | None = None) -> tuple[str, Any]:
    from jobs.recipes import load_recipe, recipes

    if not arguments or arguments[0] in ("-h", "--help"):
        shown = "\n".join(f"  {n:14} {(f.__doc__ or '').splitlines()[0]}" for n, f in recipes(kind).items())
        inputs = {"pretrain": "ARCHIVE RUN", "distill": "TEACHER_RUN ARCHIVE RUN", "estimate": "--gpus N --gpu NAME"}
        job = job or kind
        print(
            f"usage: terraloom {job} RECIPE {inputs[job]} [options]\n\nrecipes:\n{shown}"
            f"\n\nterraloom {job} RECIPE --help lists its options."
        )
        raise SystemExit(0 if arguments else 2)
    return arguments[0], load_recipe(kind, arguments[0])
