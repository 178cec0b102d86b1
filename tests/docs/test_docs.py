"""What README and docs say can be done: commands are parsed, links followed, Python compiled and imported, marked blocks run.

A block after a line `<!-- run -->` is run, the blocks of a page one after the other in a folder of its own.
"""

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs import cli
from pipeline.errors import InputError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?P<mark><!-- run -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
NOT_OURS = {"cd", "export", "pip", "python", "kubectl", "helm", "docker", "ray", "aws", "curl", "mlflow", "crontab", "tensorboard"}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [found["text"] for found in BLOCK.finditer(page.read_text()) if found["language"] == language]


def commands(text: str) -> list[list[str]]:
    """Return the words of each command of a shell block: lines go on after a backslash, redirections and comments are left out."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(re.sub(r"\$\(.*?\)", "X", line), posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if word in ("&&", "|", ";"):
                found += [command] if command else []
                command = []
            else:
                command.append(word)
    return [command[: command.index(">")] if ">" in command else command for command in found]


ALL = [(name(page), command) for page in PAGES for text in blocks(page, "sh") for command in commands(text)]
OURS = [(page, command[1:]) for page, command in ALL if command[0] == "terraloom"]


class Parsed(Exception):
    """The options were understood; nothing is run."""


@pytest.fixture
def only_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs end where their options have been parsed."""
    import pkgutil

    import jobs
    from jobs.arguments import parse

    def parse_and_stop(*arguments, **settings):
        parse(*arguments, **settings)
        raise Parsed

    for info in pkgutil.iter_modules(jobs.__path__, "jobs."):
        module = importlib.import_module(info.name)
        if getattr(module, "parse", None) is parse:
            monkeypatch.setattr(module, "parse", parse_and_stop)


def test_every_other_command_is_known() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page, (program, *arguments) in ALL:
        if program == "make":
            assert set(arguments) <= targets, page
        elif program == "python" and arguments[:1] == ["-m"]:
            assert (ROOT / (arguments[1].replace(".", "/") + ".py")).is_file() or importlib.util.find_spec(arguments[1]), page
        else:
            assert program in NOT_OURS | {"terraloom"} or "=" in program, f"{page}: {program}"


@pytest.mark.parametrize(("page", "arguments"), OURS, ids=[f"{page}: {shlex.join(words)[:60]}" for page, words in OURS])
def test_a_command_is_understood(page: str, arguments: list[str], only_parsing: None) -> None:
    if arguments[0] == "submit":
        arguments = arguments[1:]
        while arguments[0].startswith("--"):
            arguments = arguments[2:]
        if arguments[0] in ("follow", "status", "stop"):
            assert len(arguments) == 2
            return
    arguments = [word for word in arguments if word != "--json"]
    if {"--help", "-h"} & set(arguments) or (arguments[0] in cli.LISTING and len(arguments) == 1):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
        return
    with pytest.raises(Parsed):
        cli.JOBS[arguments[0]](arguments[1:])


def test_a_misspelt_option_is_not_understood(only_parsing: None) -> None:
    with pytest.raises(InputError, match="did you mean '--num-steps'"):
        cli.JOBS["pretrain"](["mae", "ARCHIVE", "RUN", "--num-step", "10"])


def test_help_may_be_read_in_part() -> None:
    command = f"{sys.executable} -m jobs.cli pretrain mae --help | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: terraloom pretrain mae")
    assert done.stderr == ""


def test_every_job_has_its_page_and_every_page_is_listed() -> None:
    docs = ROOT / "docs"
    assert {page.stem for page in (docs / "jobs").glob("*.md")} == set(cli.JOBS)
    lists = (docs / name for name in ("README.md", "results.md"))  # what sweeps wrote is listed by results
    linked = {link for page in lists for link in re.findall(r"\]\(([^)#]+\.md)", page.read_text())}
    assert {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - {"README.md"} == linked


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", to.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_imports_what_there_is(page: Path) -> None:
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.split(".")[0] in ("models", "pipeline", "cluster", "jobs")
            ):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


def test_named_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        for group in re.findall(r"terraloom\[([\w,]+)\]", page.read_text()):
            assert set(group.split(",")) <= set(extras), page


MARKED = [page for page in PAGES if "<!-- run -->\n```" in page.read_text()]


@pytest.mark.parametrize("page", MARKED, ids=name)
def test_what_is_marked_runs(page: Path, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    for found in BLOCK.finditer(page.read_text()):
        if not found["mark"]:
            continue
        if found["language"] == "python":
            exec(compile(found["text"], name(page), "exec"), {"__name__": page.stem})
            continue
        for command in commands(found["text"]):
            with pytest.raises(SystemExit) as ended:
                cli.main(command[1:])
            assert ended.value.code == 0, command
