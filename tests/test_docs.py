"""README and the pages of docs/: their lines are short, and what they tell a reader to type exists."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import maeclip_jax as mc
from maeclip_jax import config as configs
from tests.test_makefile import clean

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
TASKS = sorted((ROOT / "docs").glob("*.md"))
PACKAGE = ROOT / "maeclip_jax"
# What pages name in place of a run of the reader's own.
RUN = "experiments/mae_clip.py:scale=demo,pool=max"


def each(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda p: p.name)


def blocks(page: Path) -> list[str]:
    """The commands in fenced blocks without a language, one a line, in the order of the page."""
    found = re.findall(r"^```\n(.*?)^```$", page.read_text(), flags=re.S | re.M)
    lines = [line for block in found for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("  #")[0] for line in lines if re.match(r"(make|python) ", line)]


def made(command: str) -> list[str]:
    """The python commands that a line runs; of `make`, those that it would run."""
    if not command.startswith("make "):
        return [command]
    words = shlex.split(command)
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, env=clean({}), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [f"python {line.split(' ', 1)[1]}" for line in lines if line.startswith(".venv/bin/python -m maeclip_jax")]


def check(command: str, helps: dict[str, str]) -> None:
    """The module of a python command is there, it has the flags, and the config and suite can be loaded."""
    words = shlex.split(command)
    if words[1] == "-c":
        compile(words[2], command, "exec")
        assert set(re.findall(r"\bmc\.(\w+)", words[2])) <= set(mc.__all__), command
        return
    assert words[1] == "-m" and importlib.util.find_spec(words[2]), command
    program = words[2:4] if words[2] == "maeclip_jax.bench" else words[2:3]
    module = " ".join(program)
    if module not in helps:
        done = subprocess.run([sys.executable, "-m", *program, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        helps[module] = done.stdout
    flags = {name: value for name, _, value in (w.partition("=") for w in words if w.startswith("--"))}
    for name in flags:
        assert name.startswith("--config") or re.search(rf"{name}\b", helps[module]), f"{module} has no {name}"
    settings = {name[9:]: value for name, value in flags.items() if name.startswith("--config.")}
    settings.pop("init_from", "")  # a file of the reader's own
    if source := flags.get("--config"):
        suite = settings.pop("evals", "")
        configs.load(RUN if source.endswith("config.json") else source, settings, suite)


@each(PAGES)
def test_lines_are_short(page):
    long = [n for n, line in enumerate(page.read_text().splitlines(), 1) if len(line) > 120]
    assert not long, f"{page.name}: lines {long} are longer than 120 characters"


# "There is no X" says that something is absent, and may stay; "a tie is no hit" is written "does not count as a hit".
ODD = re.compile(r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer)\w+|\bheld against\b|\bwhat it takes to\b")


def test_prose_is_plain():
    """Pages, docstrings, comments and messages."""
    files = [*PAGES, *(f for folder in ("maeclip_jax", "experiments", "tpu") for f in (ROOT / folder).rglob("*.*"))]
    files = [f for f in files if f.suffix in (".md", ".py", ".sh", ".mk", ".j2") and "prompts" not in f.parts]
    odd = [f"{f.relative_to(ROOT)}: {m[0]}" for f in files for m in ODD.finditer(re.sub(r"\s+", " ", f.read_text()))]
    assert not odd, odd


def test_the_citation_names_this_version_and_the_paper_s_authors():
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f"version = {found['version']}\n" in (ROOT / "setup.cfg").read_text()
    (work,) = found["references"]
    assert all({"family-names", "given-names"} <= set(author) for author in work["authors"]) and work["doi"]


@each(TASKS)
def test_a_page_begins_with_a_command_that_exists(page):
    """Not with --help; what follows the command says in prose what it does."""
    head = re.match(r"# [^\n]+\n\n```\n((?:[^\n]+\n)+?)```\n\n(?=[A-Z`])", page.read_text())
    assert head, f"{page.name} does not begin with its title, a command and a sentence"
    helps = {}
    (first,) = head[1].replace("\\\n", " ").splitlines()
    assert "--help" not in first
    for command in made(first):
        check(command, helps)


@each(PAGES)
def test_commands_on_the_page_exist(page):
    """Modules and targets of all commands, in blocks and in the text, and the files that they name."""
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", "".join(p.read_text() for p in makefiles()), flags=re.M)) | {
        "tpu-push"
    }
    for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)\b", text, flags=re.M):
        assert target in targets, f"make {target}"
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert module == "pytest" or importlib.util.find_spec(module), module
    for file in re.findall(r"\b(?:experiments|tests|docs|tpu|notebooks)/[\w/]+\.(?:py|md|sh)\b", text):
        assert "NAME" in file or "OBJECTIVE" in file or (ROOT / file).exists(), file


@each(PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]*)(?:#[\w-]*)?\)", page.read_text()):
        assert not link or "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


@each(TASKS)
def test_configs_and_flags_of_the_page_are_valid(page):
    """Of commands that name a shipped experiment: every setting, suite and flag."""
    helps = {}
    for line in blocks(page):
        if re.search(r"experiments/[\w/]+\.py", line) and not line.startswith("make tpu-"):
            for command in made(line):
                check(command, helps)


def makefiles() -> list[Path]:
    return [ROOT / "Makefile", ROOT / "tpu" / "targets.mk"]


def test_the_map_of_the_readme_is_the_tree():
    """Every file and folder at the top of the package is in it once, and nothing else."""
    tree = (ROOT / "README.md").read_text().split("## Map\n\n```\n")[1].split("```")[0]
    inside = [line for line in tree.splitlines() if line.startswith("  ")]
    named = [
        name for line in inside for name in re.findall(r"(?<![\w/])(\w+\.py|\w+/)", re.split(r"\s{3,}", line[2:])[0])
    ]
    there = [p.name + "/" * p.is_dir() for p in PACKAGE.iterdir() if not p.name.startswith("__")]
    assert sorted(named) == sorted(there)
    above = re.findall(r"^(\w+)/", tree, flags=re.M)
    assert [name for name in above if not (ROOT / name).is_dir()] == []
    folders = subprocess.run(["git", "ls-tree", "-d", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert folders.returncode or set(above) == {f for f in folders.stdout.split() if not f.startswith(".")}


def test_names_of_files_are_plain():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    strange = [name for name in listed.stdout.splitlines() if not re.fullmatch(r"[\w./-]+", name)]
    assert not strange
