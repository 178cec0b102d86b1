"""The command `terraloom sweep`: plans by name with options of their own, and plan files."""

from dataclasses import dataclass, field
from typing import Any

from tyro.conf import OmitArgPrefixes, Positional

from jobs.arguments import parse
from pipeline.errors import InputError

FILES = (".yaml", ".yml")


def _sweep(arguments: list[str]) -> dict[str, Any]:
    from jobs.sweep import SweepConfig, sweep
    from jobs.sweeping.file import read_plan
    from jobs.sweeping.plan import load_maker, makers
    from pipeline.archive import open_archive

    if not arguments or arguments[0] in ("-h", "--help"):
        shown = "\n".join(f"  {name:16} {(of.options.__doc__ or '').splitlines()[0]}" for name, of in makers().items())
        print(
            f"usage: terraloom sweep PLAN ARCHIVE RUN [options]\n\nplans:\n{shown}\n  FILE.yaml        a plan of your own\n\n"
            "terraloom sweep PLAN --help lists its options; --dry-run True says how large every run would be."
        )
        raise SystemExit(0 if arguments else 2)
    name, rest = arguments[0], arguments[1:]
    if name.endswith(FILES):
        file = read_plan(name)

        @dataclass(frozen=True)
        class FileOptions:
            archive: Positional[str]
            run: Positional[str]
            config: OmitArgPrefixes[SweepConfig] = field(default_factory=SweepConfig)

        chosen = parse(FileOptions, rest, f"sweep {name}", f"Sweep the plan in {name}.")
        return sweep(file.plan(), chosen.archive, chosen.run, chosen.config)
    maker = load_maker(name)

    @dataclass(frozen=True)
    class Options:
        archive: Positional[str]
        run: Positional[str]
        plan: OmitArgPrefixes[maker.options] = field(default_factory=maker.options)  # type: ignore[name-defined]
        """What is run."""
        config: OmitArgPrefixes[SweepConfig] = field(default_factory=SweepConfig)

    options = parse(Options, rest, f"sweep {name}", maker.options.__doc__)
    if getattr(options.plan, "seeds", 1) < 1:
        raise InputError(f"seeds is {options.plan.seeds}, expected at least 1")
    return sweep(maker.make(options.plan, open_archive(options.archive)), options.archive, options.run, options.config)


COMMANDS = {"sweep": _sweep}
