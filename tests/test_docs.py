"""The documentation holds: its commands parse, its links lead somewhere, its tables are what a run wrote."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")] + sorted(ROOT.glob("docs/*.md"))
FIGURES = ROOT / "docs/figures"
SHELL = {"sh", "bash", ""}  # an indented block has no language, and is the shell's
MADE_BY_A_RUN = ("data/", "metrics/", "report/", ".venv/")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# ------------------------------------------------------------------ what a page is made of


class Block(NamedTuple):
    language: str
    text: str


def parts(text: str) -> tuple[str, list[Block]]:
    """Return a page's prose and its code blocks, fenced or indented by four."""
    prose: list[str] = []
    blocks: list[Block] = []
    fence, language, inside = "", "", list[str]()
    for line in [*text.splitlines(), ""]:
        opened = re.match(r"\s*(```+)\s*(\w*)\s*$", line)
        indented = line.startswith("    ") and not fence and (inside or (not prose or not prose[-1].strip()))
        if fence and line.strip() == fence:
            blocks.append(Block(language, "\n".join(inside)))
            fence, inside = "", []
        elif fence or indented:
            inside.append(line.removeprefix("    ") if indented else line)
        else:
            if inside:  # an indented block ends
                blocks.append(Block("", "\n".join(inside)))
                inside = []
            if opened:
                fence, language = opened[1], opened[2]
            else:
                prose.append(line)
    assert not fence, "a fence is not closed"
    return "\n".join(prose), blocks


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", parts(text)[0], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block; a quote or a backslash carries it to the next line."""
    kept = ""
    for line in text.splitlines():
        kept += line
        if kept.endswith("\\"):
            kept = kept[:-1]
            continue
        lexer = shlex.shlex(kept, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = [*lexer, ";"]
        except ValueError:  # a quote is open
            kept += "\n"
            continue
        kept, one = "", list[str]()
        for word in words:
            if set(word) <= set(";&|"):
                if one:
                    yield one
                one = []
            elif one or not re.match(r"\w+=", word):  # NAME=value before a command is its environment
                one.append(word)
    assert not kept, f"not finished: {kept}"


# ------------------------------------------------------------------ commands


def of_click(command: Any, words: list[str]) -> str:
    """Return what a program of click's, or of Typer's own click, finds wrong with its arguments; nothing is run."""
    name, *rest = words
    parent = None
    try:
        while True:
            context = command.make_context(name, list(rest), parent=parent)
            if not hasattr(command, "resolve_command"):  # no group of commands
                return ""
            left = [*context._protected_args, *context.args]
            name, command, rest = command.resolve_command(context, left)
            parent = context
    except Exception as error:  # of two kinds of click, or of a callback that checks a value
        if type(error).__name__ == "Exit":  # --help, --version
            return ""
        return f"{type(error).__name__}: {error}"


@cache
def program(name: str) -> Any:
    if name == "mlflow":
        return import_module("mlflow.cli").cli
    return typer.main.get_command(import_module("salvage.cli").app)


def of_salvage(words: list[str]) -> str:
    return of_click(program("salvage"), words)


def of_mlflow(words: list[str]) -> str:
    if words[1:3] != ["run", "."]:
        return of_click(program("mlflow"), words)
    entries = yaml.safe_load(text_of(ROOT / "MLproject"))["entry_points"]
    given = {"-e": ["main"], "-P": list[str]()}
    for option, value in pairwise(words):
        if option in given:
            given[option].append(value)
    entry = given["-e"][-1]
    if entry not in entries:
        return f"MLproject has no entry point {entry}"
    unknown = [p for p in given["-P"] if p.partition("=")[0] not in entries[entry].get("parameters", {})]
    return f"entry point {entry} has no parameter {unknown[0]}" if unknown else of_click(program("mlflow"), words)


def of_dvc(words: list[str]) -> str:
    try:
        import_module("dvc.cli.parser").get_main_parser().parse_args(words[1:])
    except import_module("dvc.cli").DvcParserError:
        return f"dvc does not understand {' '.join(words)}"
    return ""


def of_make(words: list[str]) -> str:
    makefile = text_of(ROOT / "Makefile")
    targets = set(re.findall(r"^([\w-]+):(?!=)", makefile, re.MULTILINE))
    variables = set(re.findall(r"^(\w+) [?:]?=", makefile, re.MULTILINE))
    for word in words[1:]:
        name, assigned, _ = word.partition("=")
        if name not in (variables if assigned else targets):
            return f"the Makefile has no {'variable' if assigned else 'target'} {name}"
    return ""


def of_python(words: list[str]) -> str:
    if words[1:3] == ["-m", "salvage"]:
        return of_salvage(words[2:])
    script = next((word for word in words[1:] if "/" in word), "")
    tested = words[1:3] == ["-m", "pytest"]
    if not (tested or script.endswith(".py")):
        return f"what is {' '.join(words)}?"
    return "" if (ROOT / script).exists() else f"there is no {script}"


def of_pip(words: list[str]) -> str:
    options = {"--no-deps", "--editable"}
    extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"].get("optional-dependencies", {})
    if words[1] != "install":
        return f"pip {words[1]}?"
    for word in words[2:]:
        own = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
        if not own and word not in options:
            return f"{word} is neither this project nor a known option of pip"
        unknown = set((own[1] or "").split(",")) - {""} - set(extras) if own else set()
        if unknown:
            return f"pyproject.toml has no extra {unknown.pop()}"
    return ""


def of_curl(words: list[str]) -> str:
    urls = [word for word in words if word.startswith("http")]
    if not all(re.fullmatch(r"http://127\.0\.0\.1:\d+/invocations", url) for url in urls) or not urls:
        return f"no server of ours is at {urls}"
    try:
        rows = json.loads(words[words.index("-d") + 1])["dataframe_records"]
    except (ValueError, KeyError) as error:
        return f"no request of ours: {error!r}"
    return "" if rows else "a request without rows"


def of_conda(words: list[str]) -> str:
    files = [value for option, value in pairwise(words) if option == "--file"]
    known = {yaml.safe_load(text_of(ROOT / "conda.yaml"))["name"]}
    if words[1] == "activate":
        return "" if set(words[2:]) == known else f"conda.yaml is not called {words[2:]}"
    return "" if files and all((ROOT / file).exists() for file in files) else f"{words}: there is no such file"


CHECKS: dict[str, Callable[[list[str]], str]] = {
    "salvage": of_salvage,
    "mlflow": of_mlflow,
    "dvc": of_dvc,
    "make": of_make,
    "python": of_python,
    "pip": of_pip,
    "curl": of_curl,
    "conda": of_conda,
    "cd": lambda words: "" if len(words) == 2 else "cd takes one folder",
    "mkdir": lambda words: "" if len(words) > 1 else "mkdir takes a folder",
    ".": lambda words: "" if words[1:] == [".venv/bin/activate"] else f"{words[1:]} is not ours",
}


def command_fault(words: list[str]) -> str:
    check = CHECKS.get(words[0])
    return check(words) if check else f"no check knows {words[0]}"


def shell_faults(text: str) -> list[str]:
    """Return what is wrong with the commands of a page's shell blocks."""
    faults = []
    for block in parts(text)[1]:
        if block.language in SHELL:
            syntax = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, timeout=20)
            faults += [syntax.stderr] if syntax.returncode else []
            found = [] if syntax.returncode else list(commands(block.text))
            faults += [f"{' '.join(words)}: {fault}" for words in found if (fault := command_fault(words))]
    return faults


def inline_faults(text: str) -> list[str]:
    """Return what is wrong with the commands named in a page's prose: parts of one, so names and options alone."""
    faults = []
    for code in re.findall(r"`([^`]+)`", parts(text)[0]):
        words = code.split()
        if words[0] == "make" and len(words) > 1 and (fault := of_make(words)):
            faults.append(f"`{code}`: {fault}")
        if words[0] == "salvage" and len(words) > 1:
            known = program("salvage")
            if words[1] in known.commands:
                known, words = known.commands[words[1]], words[1:]
            elif not words[1].startswith("-"):
                faults.append(f"`{code}`: there is no such command")
                continue
            options = {option for parameter in known.params for option in parameter.opts}
            faults += [f"`{code}`: no {w}" for w in words if w.startswith("--") and w not in options | {"--help"}]
    return faults


@each_page
def test_every_command_parses(page: Path) -> None:
    assert not shell_faults(text_of(page)) + inline_faults(text_of(page))


def test_commands_are_found() -> None:
    """A check that finds no command would pass on every page."""
    found = [
        words[0] for page in PAGES for b in parts(text_of(page))[1] if b.language in SHELL for words in commands(b.text)
    ]
    assert {"salvage", "mlflow", "dvc", "make", "python", "pip", "curl"} <= set(found)
    assert len(found) > 40


@pytest.mark.parametrize(
    "wrong",
    [
        "salvage rout --profiles a.csv",
        "salvage route --profile a.csv",
        "salvage route",
        "salvage rescue --cell a --attempts many",
        "salvage route --profiles a.csv --out",
        "python -m salvage nothing",
        "mlflow run . -e nothing",
        "mlflow run . -P nothing=1",
        "mlflow run . -e route -P problems=a.jsonl",
        "mlflow run . --env-manager nothing",
        "mlflow models serv -m models:/a@b",
        "dvc pushh",
        "dvc import-url",
        "make everything",
        "make run PROFIL=quick",
        "python benchmarks/nothing.py",
        "python -m pytest tests/nothing.py",
        "pip install .[nothing]",
        "pip install salvage-nothing",
        "curl -s http://127.0.0.1:5001/invocations -d '{\"dataframe_records\": [}'",
        "curl -s http://127.0.0.1:5001/nothing -d '{\"dataframe_records\": [{}]}'",
        "conda env create --file nothing.yaml",
        "nothing --at-all",
        "salvage show 'a",
        "cd a &&",
    ],
)
def test_a_wrong_command_is_found(wrong: str) -> None:
    for page in (f"So:\n\n    {wrong}\n\nand so on", f"So:\n\n```sh\n# first\n{wrong}\n```\n"):
        assert shell_faults(page)


@pytest.mark.parametrize("wrong", ["salvage rout", "salvage route --profile FILE", "make everything"])
def test_a_wrong_command_in_prose_is_found(wrong: str) -> None:
    assert inline_faults(f"Take `{wrong}` for it.")


@pytest.mark.parametrize(
    "right",
    [
        "A=1 salvage route --profiles a.csv  # all of them",
        "salvage rescue --cell 'a|b' \\\n  --tokens 400",
        "make run PROFILE=quick && cd data",
        'curl -s http://127.0.0.1:5001/invocations -d \'{"dataframe_records":\n  [{"spread": 1}]}\'',
        "mlflow run . --env-manager local -e route -P profiles=a.csv",
        "salvage route --help",
    ],
)
def test_a_right_command_is_not(right: str) -> None:
    assert not shell_faults(f"```sh\n{right}\n```")


# ------------------------------------------------------------------ other code


def code_faults(text: str) -> list[str]:
    """Return what is wrong with blocks in other languages: each parses, and Python runs where it needs no model."""
    faults = []
    for language, code in parts(text)[1]:
        try:
            if language == "json":
                for line in code.splitlines():
                    json.loads(line)
            elif language == "yaml":
                yaml.safe_load(code)
            elif language == "python":
                run_python(code)
            elif language not in SHELL | {"mermaid", "text"}:
                faults.append(f"no check knows the language {language!r}")
        except Exception as error:
            faults.append(f"{code}: {error!r}")
    return faults


def run_python(code: str) -> None:
    tree = ast.parse(code)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    needs_models = "MODEL" in code
    exec(compile(ast.Module(imports if needs_models else tree.body, []), "docs", "exec"), {})


@each_page
def test_other_code_is_whole(page: Path) -> None:
    assert not code_faults(text_of(page))


@pytest.mark.parametrize(
    "wrong",
    ["json\n{'a': 1}", "yaml\na: [", "python\nfrom salvage.rescue import nothing  # MODEL", "python\n1 / 0", "perl\n1"],
)
def test_wrong_code_is_found(wrong: str) -> None:
    assert code_faults(f"```{wrong}\n```")


# ------------------------------------------------------------------ links, pictures, names of files


def link_faults(text: str, page: Path) -> list[str]:
    """Return the relative links and pictures of a page that lead nowhere."""
    faults = []
    for link in re.findall(r"\]\(([^)\s]+)\)", parts(text)[0]):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = page.parent / path if path else page
        if not target.resolve().is_relative_to(ROOT) or not target.exists():
            faults.append(f"{link}: there is no such file")
        elif anchor and anchor not in anchors(text if target == page else text_of(target)):
            faults.append(f"{link}: there is no such heading")
    return faults


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not link_faults(text_of(page), page)


@pytest.mark.parametrize("wrong", ["docs/none.md", "docs/none.png", "docs/serve.md#none", "#none", "../README.md"])
def test_a_wrong_link_is_found(wrong: str) -> None:
    assert link_faults(f"# One\n\n![It]({wrong})\n", ROOT / "README.md")
    assert not link_faults(
        "# One, two?\n\n[It](#one-two) ([there](docs/serve.md#a-request-that-is-wrong))", ROOT / "README.md"
    )


def name_faults(text: str) -> list[str]:
    """Return the files, and names in them (`file.py:name`), that a page speaks of and that are not there."""
    faults = []
    for code in re.findall(r"`([^`\s]+)`", parts(text)[0]):
        named = re.fullmatch(r"([\w.*/-]+(?:\.(?:py|md|yaml|toml|j2|json|lock)|/))(?::(\w+))?", code)
        if not named or code.startswith(MADE_BY_A_RUN):
            continue
        found = [file for root in (ROOT, ROOT / "src/salvage") for file in root.glob(named[1])]
        if not found:
            faults.append(f"{code}: there is no such file")
        elif named[2] and named[2] not in defined(found[0]):
            faults.append(f"{code}: nothing there is called so")
    return faults


def defined(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(text_of(file)).body:
        names |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
        names |= {t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)}
    return names


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_that_makers_are_told_of_is_there(page: str) -> None:
    assert not name_faults(text_of(ROOT / page))


@pytest.mark.parametrize("wrong", ["policies/none.py", "none/", "method/features.py:none", "method/*.none.py"])
def test_a_wrong_name_is_found(wrong: str) -> None:
    assert (
        name_faults(f"Look at `{wrong}` and `method/features.py:trajectory_features`.")
        == name_faults(f"`{wrong}`")
        != []
    )


def test_the_picture_of_the_house_has_the_rooms_in_their_order() -> None:
    contract = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"][0]
    [picture] = [b.text for b in parts(text_of(ROOT / "ARCHITECTURE.md"))[1] if b.language == "mermaid"]
    rooms = picture[picture.index("subgraph rooms") :].partition("\n    end")[0]
    chains = [line.split(" --> ") for line in map(str.strip, rooms.splitlines()) if "-->" in line]
    assert all(before[-1] == after[0] for before, after in pairwise(chains))
    column = chains[0] + [name for chain in chains[1:] for name in chain[1:]]
    assert column == contract["layers"]


# ------------------------------------------------------------------ the front door


def door_faults(text: str) -> list[str]:
    """Return what makes a README too much for a front door, and the pages that it does not lead to."""
    lines = text.splitlines()
    faults = [f"{len(lines)} lines; at most 120"] if len(lines) > 120 else []
    faults += [f"line {i}: {len(line)} characters; at most 120" for i, line in enumerate(lines, 1) if len(line) > 120]
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)}
    pages = {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"}
    return faults + [f"{page} is not linked" for page in sorted(pages - linked)]


def test_readme_is_a_front_door() -> None:
    assert not door_faults(text_of(ROOT / "README.md"))


def test_a_door_that_is_too_much_is_found() -> None:
    readme = text_of(ROOT / "README.md")
    assert len(door_faults(readme + "\n" * 120)) == len(door_faults(readme + "-" * 121)) == 1
    assert len(door_faults(readme.replace("(docs/serve.md)", "(docs/route.md)"))) == 1


# ------------------------------------------------------------------ tables and the figures of a run


def table(text: str, header: str) -> list[list[str]]:
    """Return the cells of the table whose header begins so, below the header."""
    lines = text.splitlines()
    [start] = [i for i, line in enumerate(lines) if line.startswith(header)]
    body = lines[start + 2 :]
    end = next((i for i, line in enumerate(body) if not line.startswith("|")), len(body))
    return [[cell.strip().strip("`") for cell in line.strip().strip("|").split("|")] for line in body[:end]]


def figures(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(text_of(FIGURES / f"{name}.json"))
    return rows


def percent(row: dict[str, Any], name: str, form: str = ".1f") -> str:
    ends = (f"{name}_low", f"{name}_high") if f"{name}_low" in row else ("low", "high")
    value, low, high = (format(100 * row[key], form) for key in (name, *ends))
    return f"{value} [{low}, {high}]"


def arms(cells: str, budget: str) -> dict[str, dict[str, Any]]:
    return {r["arm"]: r for r in figures("rescue") if r["cells"] == cells and r["budget"] == int(budget)}


def readme_row(cells: list[str]) -> list[str]:
    arm = arms("all", cells[0])
    points = [percent(arm[name], "same_tokens", "+.1f") for name in ("rule", "calibrated", "portfolio")]
    return [cells[0], f"{100 * arm['retry']['solved']:.1f}%", *points]


def rescue_row(cells: list[str]) -> list[str]:
    arm = arms(*cells[:2])
    mine, retry = arm["portfolio"], arm["retry"]
    over = {name: percent(arm[name], "over_retry", "+.1f") for name in ("portfolio", "calibrated", "rule")}
    tokens = f"{retry['model_tokens']:.0f} / {mine['model_tokens']:.0f}"
    solved, same = f"{100 * retry['solved']:.1f}", percent(mine, "same_tokens", "+.1f")
    return [*cells[:2], solved, over["portfolio"], same, tokens, over["calibrated"], over["rule"]]


def evaluation_row(cells: list[str]) -> list[str]:
    name = cells[0].removeprefix("the ").removesuffix(" operator").removesuffix(" always")
    rows = {
        r["protocol"]: r
        for r in figures("evaluate")
        if (r["cell"], r["scope"], r["policy"], r["k"]) == ("all", "steerable-hard", name, 1)
    }
    return [cells[0], *(percent(rows[protocol], "rescue") for protocol in ("paper", "cross-fitted"))]


TABLES = [
    ("README.md", "| budget | sampling again solves |", readme_row, 3),
    ("docs/rescue.md", "| problems of | budget |", rescue_row, 21),
    ("docs/evaluation.md", "| steerable-hard failures |", evaluation_row, 6),
]


@pytest.mark.parametrize(("page", "header", "row", "rows"), TABLES, ids=[page for page, *_ in TABLES])
def test_tables_are_what_the_run_wrote(page: str, header: str, row: Callable[..., list[str]], rows: int) -> None:
    shown = table(text_of(ROOT / page), header)
    assert len(shown) == rows
    assert shown == [row(cells) for cells in shown]


def test_a_wrong_figure_is_found() -> None:
    [first, *_] = table(text_of(ROOT / "README.md"), TABLES[0][1])
    assert first != readme_row(["8", *first[1:]])
