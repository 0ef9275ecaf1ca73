"""What strangers and their tools read of the project: how to cite it, its forms, badges, versions and container."""

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = [kind.split(" :: ")[-1] for kind in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", kind)]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_has_what_its_format_asks_for_and_agrees_with_the_project():
    """https://github.com/citation-file-format: version 1.2.0."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() and cited["cff-version"] == "1.2.0"
    assert cited["version"] == PROJECT["version"] and cited["license"] == PROJECT["license"]
    names = [author["name"] for author in cited["authors"]]
    assert names == [author["name"] for author in PROJECT["authors"]]
    assert f"(c) 2026 {' and '.join(names)}" in (ROOT / "LICENSE").read_text()
    for reference in cited["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert all(author.keys() == {"family-names", "given-names"} for author in reference["authors"])


def test_badges_say_what_is_declared():
    first, *_, last = VERSIONS
    assert PROJECT["requires-python"] == f">={first},<3.{int(last.split('.')[1]) + 1}"
    texts = {name: (ROOT / f"docs/figures/{name}.svg").read_text() for name in ("python", "licence")}
    shown = {name: re.findall(r">([^<>\n]+)</text>", text) for name, text in texts.items()}
    assert shown == {"python": ["python", f"{first} to {last}"], "licence": ["licence", PROJECT["license"]]}
    assert f"Python {first} to {last}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", [path for path in FORMS if path.name != "config.yml"], ids=lambda path: path.stem)
def test_issue_forms_are_as_github_reads_them(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "labels", "body"}
    assert len({part["id"] for part in form["body"]}) == len(form["body"])
    kinds = {"input": {"label", "description"}, "textarea": {"label", "description", "render"}}
    kinds["checkboxes"] = {"label", "options"}
    for part in form["body"]:
        assert part.keys() <= {"type", "id", "attributes", "validations"}
        assert {"label"} <= part["attributes"].keys() <= kinds[part["type"]]
        assert part.get("validations", {"required": True}) == {"required": True}
        assert all(option.keys() <= {"label", "required"} for option in part["attributes"].get("options", []))


def test_the_container_has_a_declared_python_and_the_files_it_copies():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    base = next(line for line in lines if line.startswith("FROM"))
    assert re.search(r"python:([\d.]+)-", base)[1] in VERSIONS
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name in copied:
        assert (ROOT / name).exists() and not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)
    outputs = re.findall(r"^/(\w+)/", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    assert set(outputs) <= set(ignored), "what runs leave behind is not copied into an image"
