"""Our task folders as pull requests to EleutherAI/lm-evaluation-harness: ``scripts/export_upstream OUT``.

OUT gets one folder a pull request, to be copied into ``lm_eval/tasks/``: YAMLs under neutral names, a ``utils.py`` that
needs nothing of this package, a README after upstream's template; beside them ``tasks_README_lines.md`` (rows for the table
in ``lm_eval/tasks/README.md``) and ``changed_files.txt`` (what ``tests/test_tasks.py`` there needs to test these tasks).

Our groups become tags: that test refuses a change that adds a group together with its tasks (``Duplicate task``). The groups
with their means lie in ``afterwards/``, for a change of their own: without ``.txt``, into the folder of the tasks.

There is no second copy of any prompt or score: YAMLs are rewritten line by line from ours, and ``utils.py`` is put together
from our own source text, each function named by a YAML with whatever it stands on. Movie reviews, the probe and the seed
study's variants stay home.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2

from w2s_tasks import TASK_PATH
from w2s_tasks.errors import UserError

PACKAGE = TASK_PATH.parent
TEMPLATES = PACKAGE / "export_templates"
DOCUMENTS = "w2s_tasks.export_templates.documents"
FUNCTION = re.compile(r"!function (w2s_tasks\.[\w.]+)\.(\w+)")
Ref = tuple[str, str]
"""(module of ours, name in it)."""


@dataclass(frozen=True)
class Family:
    """One pull request."""

    folder: str
    """The folder here, below `w2s_tasks`."""
    ours: str
    """How task names begin here."""
    name: str
    """How they begin upstream; also the folder there."""
    description: str
    """For the table in upstream's tasks/README.md."""
    left_out: tuple[str, ...] = ()
    """Patterns of YAMLs that stay home."""
    headers: tuple[tuple[str, str], ...] = ()
    """Opening comments that replace ours, by file name upstream."""


FAMILIES = (
    Family(
        "sst2",
        "w2s_sst2",
        "sst2_review",
        "Sentiment of movie-review sentences (SST-2), as choices and as generated text, with fixed balanced shots.",
        left_out=("*_study*.yaml",),
        headers=(("sst2_review.yaml", "# SST-2, validation (872 rows).\n"),),
    ),
    Family(
        "boolq",
        "w2s_boolq",
        "boolq_passage",
        "Yes/no questions about a passage (BoolQ), as choices and as generated text, with fixed balanced shots.",
    ),
    Family(
        "ethics",
        "w2s_ethics",
        "ethics_paper",
        "ETHICS with the paper's test and hard test sets, exact match and ranking, as choices and as generated text.",
        headers=(
            ("commonsense_long.yaml", "# Commonsense morality, the long scenarios (title | story): label 1 = wrong.\n"),
        ),
    ),
)

# Our loading functions (and their `subtask`) -> upstream's keys, process_docs, and the shots where they are not `shots`.
ETHICS = (
    "dataset_path: hendrycks/ethics\n"
    "dataset_kwargs:\n"
    "  revision: refs/convert/parquet  # the main branch holds a loading script, which datasets >= 4 refuses\n"
    "  data_dir: {}  # that revision has a folder for each configuration, and no list of them\n"
)
DATA: dict[tuple[str, str | None], tuple[str, str | None, str | None]] = {
    ("sst2", None): ("dataset_path: stanfordnlp/sst2\n", None, None),
    ("boolq", None): ("dataset_path: google/boolq\n", "labelled", "labelled_shots"),
    ("ethics", "justice"): (ETHICS.format("justice"), "groups_of_4", None),
    ("ethics", "deontology"): (ETHICS.format("deontology"), "groups_of_4", None),
    ("ethics", "virtue"): (ETHICS.format("virtue"), "groups_of_5", None),
    ("ethics", "utilitarianism"): (ETHICS.format("utilitarianism"), "scenarios", None),
    ("ethics", "commonsense"): (ETHICS.format("commonsense"), "short", "short_shots"),
    ("ethics", "commonsense_long"): (ETHICS.format("commonsense"), "long", "long_shots"),
}

# In YAMLs: our samplers and shots -> upstream's `first_n` over shots that are already in order.
SHOTS = (
    (re.compile(r"!function w2s_tasks\.fewshot\.\w+Sampler"), "first_n"),
    (re.compile(r"w2s_tasks\.fewshot\.pool"), f"{DOCUMENTS}.shots"),
    (re.compile(r"w2s_tasks\.ethics\.shots\.rated_activities"), f"{DOCUMENTS}.rated_shots"),
)

# Order of the modules in utils.py: each stands on earlier ones only.
MODULES = (
    "w2s_tasks.scoring.no_answer",
    "w2s_tasks.scoring.answers",
    "w2s_tasks.scoring.metrics",
    "w2s_tasks.scoring.generated",
    "w2s_tasks.rows.fewshot",
    "w2s_tasks.rows.sources",
    "w2s_tasks.rows.ethics_shots",
    DOCUMENTS,
)
# Names that two modules define differently get this prefix in the later one.
PREFIXES = {"w2s_tasks.scoring.generated": "reply"}
# Methods that are written out as functions of (rows, seed), under the names that `documents` has for them.
METHODS = {
    (DOCUMENTS, "balanced_order"): ("w2s_tasks.rows.fewshot", "BalancedSampler", "_draw"),
    (DOCUMENTS, "fixed_first"): ("w2s_tasks.rows.fewshot", "FixedThenSeededSampler", "_draw"),
}
# What only this package needs: (module, text, its replacement).
EDITS = (
    ("w2s_tasks.scoring.generated", "    if isinstance(reply, NoReply):\n        return {}\n", ""),
    ("w2s_tasks.scoring.generated", '"""SST-2 and movie reviews."""', '"""SST-2."""'),
)
NOTES = re.compile(r"  # (?:noqa: S311|type: ignore)[^\n]*")
# Columns that our rows have beside those of the data set: upstream each task has its own rows, and nothing to keep apart.
COLUMN = re.compile(r"\bw2s_(?=(?:group|pair|role)\b)")
HOME = re.compile(r"w2s|trainers?\b|seed study|the study", re.IGNORECASE)


# --- utils.py: our own source, put together -----------------------------------------------------------------------------


@dataclass
class Source:
    """One module of ours: the text of each top-level definition, and where imported names come from."""

    definitions: dict[str, str] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    """Name -> the import statement of a library that gives it."""
    ours: dict[str, Ref] = field(default_factory=dict)
    """Name -> the module of this package that defines it."""


def _text_of(module: str) -> str:
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    for where, old, new in EDITS:
        if where == module:
            if old not in text:
                raise ValueError(f"{module} no longer holds {old!r}: bring EDITS of w2s_tasks/export.py up to date")
            text = text.replace(old, new)
    return NOTES.sub("", text)


def _segment(lines: Sequence[str], node: ast.stmt, after: ast.stmt | None) -> str:
    """The text of a statement with the comment right above it, and the docstring below it where it is an assignment."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
    while first > 0 and lines[first - 1].startswith("#"):
        first -= 1
    last = node.end_lineno or node.lineno
    documented = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr)
    if documented and after is not None:
        last = after.end_lineno or last
    return "\n".join(lines[first:last])


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


@cache
def _source(module: str) -> Source:
    text = _text_of(module)
    body, found = ast.parse(text).body, Source()
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.imports[alias.asname or alias.name] = ast.unparse(ast.Import([alias]))
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                if (node.module or "").startswith("w2s_tasks"):
                    found.ours[alias.asname or alias.name] = (str(node.module), alias.name)
                else:
                    found.imports[alias.asname or alias.name] = ast.unparse(ast.ImportFrom(node.module, [alias], 0))
        for name in _defined(node):
            found.definitions[name] = _segment(text.splitlines(), node, after)
    return found


def _method_as_function(module: str, kind: str, method: str, name: str) -> str:
    """The method's own text as ``name(rows, seed)``, with its class's docstring."""
    node = next(n for n in ast.parse(_source(module).definitions[kind]).body if isinstance(n, ast.ClassDef))
    function = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == method)
    body = "\n".join(_source(module).definitions[kind].splitlines()[function.lineno : function.end_lineno])
    body = textwrap.dedent(body).replace("self.df", "rows").replace("self._seed", "seed")
    if "self" in body:
        raise ValueError(f"{module}.{kind}.{method} uses more than df and _seed: it can't be written out as a function")
    told = ast.get_docstring(node) or ""
    end = "\n" if "\n" in told else ""
    body = textwrap.indent(f'"""{told}{end}"""\n{body}', "    ")
    return f"def {name}(rows: Sequence[Doc], seed: int) -> list[Doc]:\n{body}"


def _resolve(module: str, name: str) -> Ref | None:
    """Which definition of ours a name in a module stands for; None for a library's or a local one."""
    if (module, name) in METHODS:
        home, kind, method = METHODS[module, name]
        _source(home).definitions.setdefault(name, _method_as_function(home, kind, method, name))
        return home, name
    if name in _source(module).definitions:
        return module, name
    return _source(module).ours.get(name)


def _names(text: str) -> Iterator[ast.Name]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name))


def _closure(roots: Sequence[Ref]) -> list[Ref]:
    """The roots and all definitions they stand on, in an order in which each comes after those it needs."""
    needed: set[Ref] = set()
    waiting = [ref for module, name in roots if (ref := _resolve(module, name))]
    while waiting:
        module, name = ref = waiting.pop()
        if ref in needed:
            continue
        needed.add(ref)
        used = {node.id for node in _names(_source(module).definitions[name])}
        waiting += [found for used_name in used if (found := _resolve(module, used_name))]
    if strange := {module for module, _ in needed} - set(MODULES):
        raise ValueError(f"exported functions now stand on {', '.join(sorted(strange))}: add it to MODULES at its place")
    places = {(m, name): (i, j) for i, m in enumerate(MODULES) for j, name in enumerate(_source(m).definitions)}
    return sorted(needed, key=places.__getitem__)


def _exported_names(refs: Sequence[Ref]) -> dict[Ref, str]:
    """The name of each definition in utils.py; equal texts share one."""
    texts: dict[str, str] = {}
    names: dict[Ref, str] = {}
    for module, name in refs:
        text, new = _source(module).definitions[name], name
        if texts.setdefault(new, text) != text:
            prefix = PREFIXES[module]
            bare = name.lstrip("_")
            new = f"{prefix.title()}{name}" if name[0].isupper() else f"{name[: len(name) - len(bare)]}{prefix}_{bare}"
            if texts.setdefault(new, text) != text:
                raise ValueError(f"{module}.{name}: {new} is taken too")
        names[module, name] = new
    return names


def _renamed(ref: Ref, names: dict[Ref, str]) -> str:
    """A definition's text under its new name, and with the new names of what it uses."""
    module, own = ref
    text = _source(module).definitions[own]
    lines = text.split("\n")
    spots = [(node.lineno, node.col_offset, node.id) for node in _names(text)]
    spots += [(n.lineno, len("def "), n.name) for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)]
    for line, column, old in sorted(spots, reverse=True):
        found = _resolve(module, old)
        new = names.get(found, old) if found else old
        if new == old:
            continue
        row = lines[line - 1].encode()
        if row[column : column + len(old)] != old.encode():
            raise ValueError(f"{module}.{own}: {old} stands where it can't be renamed (in an f-string?)")
        lines[line - 1] = (row[:column] + new.encode() + row[column + len(old) :]).decode()
    return "\n".join(lines)


def _import_lines(refs: Sequence[Ref]) -> str:
    """The libraries' imports that these definitions use, in no order."""
    used = {(module, node.id) for module, name in refs for node in _names(_source(module).definitions[name])}
    return "\n".join(sorted({_source(m).imports[name] for m, name in used if name in _source(m).imports}))


def _formatted(code: str) -> str:
    """The code as upstream's pre-commit hooks leave it: imports sorted, those of types alone apart, 88 columns.

    Raises:
        UserError: ruff is not installed.
    """
    beside = Path(sys.executable).with_name("ruff")
    ruff = str(beside) if beside.exists() else shutil.which("ruff")
    if ruff is None:
        raise UserError("ruff formats the exported code, and it is not installed: pip install ruff")
    imports = "lint.isort = {combine-as-imports = true, lines-after-imports = 2}"
    fix = ["check", "--quiet", "--select", "I,TC", "--fix", "--unsafe-fixes", "--config", imports]
    for command in (fix, ["format", "--line-length", "88"]):
        call = [ruff, *command, "--isolated", "--target-version", "py310", "-"]
        code = subprocess.run(call, input=code, capture_output=True, text=True, check=True).stdout
    return code


def utils(title: str, roots: Sequence[Ref]) -> tuple[str, dict[Ref, str]]:
    """The text of a ``utils.py`` that holds these functions and all they stand on, and each function's name in it."""
    refs = _closure(roots)
    names = _exported_names(refs)
    texts = list(dict.fromkeys(_renamed(ref, names) for ref in refs))
    opening = f'"""Documents, shots and scores of {title}."""\n\nfrom __future__ import annotations\n'
    code = "\n\n".join([opening + "\n" + _import_lines(refs), *texts])
    return _formatted(code + "\n"), {root: names[found] for root in roots if (found := _resolve(*root))}


# --- YAMLs ---------------------------------------------------------------------------------------------------------------


def _blocks(text: str) -> dict[str, str]:
    """Top-level keys of a YAML with their lines; the opening comment under ''."""
    head, *parts = re.split(r"^(?=\w+:)", text, flags=re.MULTILINE)
    return {"": head, **{part.partition(":")[0]: part for part in parts}}


def _data_block(blocks: dict[str, str]) -> str:
    """Upstream's keys for what our `custom_dataset` loads; also sets the shots where they need the same work."""
    loader = blocks["custom_dataset"].split(".")[-1].strip()
    subtask = re.search(r"subtask: (\w+)", blocks.pop("dataset_kwargs", ""))
    keys, process, shots = DATA[loader, subtask[1] if subtask else None]
    if shots:
        lines = f"fewshot_config:\n  sampler: first_n\n  process_docs: !function {DOCUMENTS}.{shots}\n"
        blocks["fewshot_config"] = lines
    return keys + (f"process_docs: !function {DOCUMENTS}.{process}\n" if process else "")


def _yaml(text: str, family: Family, header: str | None) -> str:
    """One YAML of ours for upstream, still with our functions' names."""
    blocks = _blocks(text)
    if header is not None:
        blocks[""] = header
    if "custom_dataset" in blocks:
        blocks["custom_dataset"] = _data_block(blocks)
    if "metadata" in blocks:
        version = re.findall(r"^  version: .*\n", blocks.pop("metadata"), flags=re.MULTILINE)
        blocks["metadata"] = "".join(["metadata:\n", *version])
    text = "".join(blocks.values()).replace("../_", "_")
    for pattern, new in SHOTS:
        text = pattern.sub(new, text)
    return re.sub(rf"\b{family.ours}", family.name, text)


def _included(text: str) -> list[str]:
    return re.findall(r"[\w.]+", _blocks(text).get("include", "").partition(":")[2])


def _members(text: str) -> list[str]:
    """Members of a group's YAML; none for a task's."""
    blocks = _blocks(text)
    return re.findall(r"- (\w+)", blocks["task"]) if "group" in blocks else []


def _group_name(text: str) -> str:
    return _blocks(text)["group"].split()[1]


def _tagged(text: str, tag: str) -> str:
    blocks = _blocks(text)
    blocks["task"] += f"tag: {tag}\n"
    return "".join(blocks.values())


def _yamls(family: Family) -> tuple[dict[str, str], dict[str, str]]:
    """The YAMLs of a pull request by file name, and the groups that come afterwards; functions are still ours."""
    folder, headers = TASK_PATH / family.folder, dict(family.headers)
    kept = [p for p in sorted(folder.glob("*.yaml")) if not any(p.match(pattern) for pattern in family.left_out)]
    found: dict[str, str] = {}
    for path in kept:
        name = path.name.replace(family.ours, family.name)
        found[name] = _yaml(path.read_text(encoding="utf-8"), family, headers.get(name))
    groups = {name: found.pop(name) for name, text in list(found.items()) if _members(text)}
    of_groups = {_group_name(text) for text in groups.values()}
    of_tasks = {name: text for name, text in groups.items() if not of_groups & set(_members(text))}
    tags = {task: _group_name(text) for text in of_tasks.values() for task in _members(text)}
    for name, text in found.items():
        tag = tags.get(_blocks(text)["task"].split()[1])
        found[name] = _tagged(text, tag) if tag else text
    for name in sorted({name for text in found.values() for name in _included(text)} - set(found)):
        found[name] = _yaml((TASK_PATH / name).read_text(encoding="utf-8"), family, None)
    return found, {f"{n}.txt": re.sub(r"^(group: \w+)", r"\1_mean", t, flags=re.MULTILINE) for n, t in of_tasks.items()}


# --- README, folder, command -------------------------------------------------------------------------------------------


def _readme(family: Family) -> str:
    """Upstream's README template, filled in; title, citation and changelog are those of our README."""
    ours = (TASK_PATH / family.folder / "README.md").read_text(encoding="utf-8")
    parts = {
        "title": re.search(r"^Title: (.+)$", ours, flags=re.MULTILINE),
        "abstract": re.search(r"^Abstract: (.+)$", ours, flags=re.MULTILINE),
        "citation": re.search(r"```bibtex\n(.*?)\n```", ours, flags=re.DOTALL),
        "changelog": re.search(r"^(### Changelog\n.*?)\s*(?=^#|\Z)", ours, flags=re.DOTALL | re.MULTILINE),
    }
    missing = [name for name, match in parts.items() if match is None]
    if missing:
        raise ValueError(f"w2s_tasks/{family.folder}/README.md has no {', '.join(missing)}")
    template = (TEMPLATES / f"README_{family.folder}.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown
    return environment.from_string(template).render({name: match[1] for name, match in parts.items() if match})


def pull_request(family: Family) -> tuple[dict[str, str], dict[str, str]]:
    """The files of one pull request's folder by name, and those of the change that comes afterwards.

    Raises:
        ValueError: something of this package's own is left in a file.
        UserError: ruff is not installed.
    """
    yamls, groups = _yamls(family)
    roots = sorted({(module, name) for text in yamls.values() for module, name in FUNCTION.findall(text)})
    code, names = utils(f"the tasks `{family.name}`", roots)
    files = {
        name: FUNCTION.sub(lambda match: f"!function utils.{names[match[1], match[2]]}", text)
        for name, text in yamls.items()
    }
    files |= {"utils.py": code, "README.md": _readme(family)}
    files = {name: COLUMN.sub("", text) for name, text in files.items()}
    for name, text in (files | groups).items():
        if left := HOME.search(text):
            raise ValueError(f"{family.name}/{name}: {left[0]!r} means nothing upstream")
    return files, groups


def files() -> dict[str, str]:
    """Every file of the export, by its path below OUT."""
    found: dict[str, str] = {}
    later: dict[str, str] = {}
    for family in FAMILIES:
        own, groups = pull_request(family)
        found |= {f"{family.name}/{name}": text for name, text in own.items()}
        later |= {f"afterwards/{family.name}/{name}": text for name, text in groups.items()}
    changed = [f"lm_eval/tasks/{path}" for path in sorted(found)]
    rows = [f"| [{f.name}]({f.name}/README.md) | {f.description} | English |" for f in FAMILIES]
    return {
        **found,
        **later,
        "changed_files.txt": "\n".join(changed) + "\n",
        "tasks_README_lines.md": "\n".join(sorted(rows)) + "\n",
    }


def export(out: Path) -> list[Path]:
    """Write the export into an empty or new folder; return the pull requests' folders.

    Raises:
        UserError: ``out`` is a file, holds something, or can't be written.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists and is not an empty folder: name a new one, or remove it first.")
        for name, text in files().items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} can't be written: {error.strerror or error}.") from error
    return [out / family.name for family in FAMILIES]


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, and say what is where."""
    parser = argparse.ArgumentParser(description="Write our tasks as pull requests to lm-evaluation-harness.")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    out = parser.parse_args(arguments).out
    try:
        for folder in export(out):
            sys.stdout.write(f"{folder}: {len(list(folder.glob('*.yaml')))} YAMLs, {len(list(folder.iterdir()))} files\n")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
    sys.stdout.write(
        f"Copy the folders into lm_eval/tasks/ of a checkout, the rows of {out / 'tasks_README_lines.md'} into\n"
        f"lm_eval/tasks/README.md, and {out / 'changed_files.txt'} to\n"
        ".github/outputs/tasks_all_changed_and_modified_files.txt; then: python -m pytest tests/test_tasks.py\n"
    )


if __name__ == "__main__":
    main()
