"""Files that say the same thing agree: metadata, versions, workflows, hooks, citation and changelog."""

import fnmatch
import importlib.util
import re
import sys
from pathlib import Path

import pytest

import echo_ext

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
if not (ROOT / ".github").exists():
    pytest.skip("the files are those of a clone of the repository", allow_module_level=True)

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
ACTIONS = sorted(ROOT.glob(".github/actions/*/action.yml"))
PYTHONS = [found[1] for name in PROJECT["classifiers"] if (found := re.fullmatch(r".* :: Python :: (3\.\d+)", name))]
OLDEST = ".ci/constraints-oldest.txt"


def parsed(path):
    return yaml.safe_load(Path(ROOT, path).read_text(encoding="utf-8"))


def text_of(paths):
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def pins(path):
    """The version of each package that a file of constraints pins."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text_of([ROOT / path]), re.MULTILINE))


def installations():
    """The arguments of each use of the action that installs the package, with the values of each case of a matrix."""
    arguments = []
    for job in (job for path in WORKFLOWS for job in parsed(path)["jobs"].values()):
        for given in (step["with"] for step in job.get("steps", ()) if step.get("uses") == "./.github/actions/install"):
            for case in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
                from_matrix = {f"${{{{ matrix.{name} }}}}": value for name, value in case.items()}
                arguments.append({name: from_matrix.get(value, value) for name, value in given.items()})
    return arguments


def release_notes():
    """The script of the release workflow, as a module."""
    spec = importlib.util.spec_from_file_location("release_notes", ROOT / ".ci" / "release_notes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_versions_of_python_agree():
    oldest, newest = (int(version[2:]) for version in (PYTHONS[0], PYTHONS[-1]))
    assert [f"3.{minor}" for minor in range(oldest, newest + 1)] == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")
    tested = {given["python-version"] for given in installations() if "--pre" not in given.get("pip-arguments", "")}
    assert {PYTHONS[0], PYTHONS[-1]} <= tested <= set(PYTHONS)


def test_wheels_are_built_for_these_versions_of_python():
    settings = PYPROJECT["tool"]["cibuildwheel"]
    build, skip = (settings.get(key, default) for key, default in (("build", "*"), ("skip", "")))
    build, skip = (patterns.split() if isinstance(patterns, str) else patterns for patterns in (build, skip))

    def selected(name):
        chosen, skipped = (any(fnmatch.fnmatch(name, each) for each in patterns) for patterns in (build, skip))
        return chosen and not skipped

    later = [f"3.{minor}" for minor in range(int(PYTHONS[0][2:]), 20)]  # requires-python leaves out the others
    assert [version for version in later if selected(f"cp{version.replace('.', '')}-manylinux_x86_64")] == PYTHONS


def test_oldest_packages_are_the_minimum_and_have_a_job_with_the_oldest_python():
    minimum = dict(re.findall(r"([\w-]+)>=([\d.]+)", "\n".join(PROJECT["dependencies"])))
    assert minimum.items() <= {name: re.sub(r"\.0$", "", version) for name, version in pins(OLDEST).items()}.items()
    assert {"numpy", "torch"} <= minimum.keys()
    assert [given["python-version"] for given in installations() if given.get("constraints") == OLDEST] == [PYTHONS[0]]


def test_extras_that_workflows_install_exist():
    extras = {given["extra"] for given in installations() if "extra" in given}
    extras.add(parsed(".github/actions/install/action.yml")["inputs"]["extra"]["default"])
    extras.update(re.findall(r"'\.\[(\w+)\]'", text_of([ROOT / ".readthedocs.yaml"])))
    assert {"docs", "test"} <= extras <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS, ROOT / ".readthedocs.yaml"], ids=lambda path: path.parent.name)
def test_files_that_workflows_name_exist(path):
    text = re.sub(r"#.*|https?://\S+", "", text_of([path]))
    folders = r"\.github|\.ci|docs|python_tests|csrc|echo_ext"
    named = re.findall(rf"(?<![\w/.*-])(?:\./)?((?:{folders})/[\w./-]*\w|\w+\.(?:txt|toml|in|py))(?![\w*-])", text)
    assert [name for name in named if not name.startswith("docs/_build") and not (ROOT / name).exists()] == []


def test_actions_are_pinned_to_one_commit_each():
    used = re.findall(r"uses: ([^\s./][^\s@]*)@(.*)", text_of([*WORKFLOWS, *ACTIONS]))
    assert used
    for name, reference in used:
        assert re.fullmatch(r"[0-9a-f]{40} # v\d+\.\d+\.\d+", reference), name
    assert len(set(used)) == len(dict(used))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_few_permissions_and_an_end(path):
    workflow = parsed(path)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert "uses" in job or 0 < job["timeout-minutes"] <= 360


def test_releases_publish_with_an_identity_instead_of_a_password():
    job = parsed(".github/workflows/release.yml")["jobs"]["publish"]
    assert job["permissions"] == {"id-token": "write"}
    assert job["environment"]["name"] == "pypi"
    assert "secrets." not in text_of(WORKFLOWS)


def test_hooks_have_the_versions_of_the_constraints():
    pinned = pins("constraints.txt")
    hooks = [hook for repository in parsed(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    needed = dict(item.split("==") for hook in hooks for item in hook.get("additional_dependencies", []))
    shared = pinned.keys() & needed.keys()
    assert shared >= {"ruff", "clang-format"}
    assert {name: needed[name] for name in shared} == {name: pinned[name] for name in shared}


def test_citation_is_that_of_the_package():
    citation = parsed("CITATION.cff")
    assert citation["version"] == echo_ext.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert citation["url"] == PROJECT["urls"]["Documentation"]


def test_changelog_has_the_version_with_the_date_of_the_citation():
    date, _ = release_notes().section(text_of([ROOT / "CHANGELOG.md"]), echo_ext.__version__)
    assert date == parsed("CITATION.cff").get("date-released", "unreleased")


def test_notes_of_a_release_are_its_section_alone():
    log = "# Changelog\n\n## [1.1.0] - 2027-01-02\n\nNew.\n\n## [1.0.0] - 2027-01-01\n\n[Old] one.\n\n[1.0.0]: https://x\n"
    assert release_notes().section(log, "1.1.0") == ("2027-01-02", "New.")
    assert release_notes().section(log, "1.0.0") == ("2027-01-01", "[Old] one.")
    with pytest.raises(SystemExit, match=r"must have a section '## \[0\.9\.0\]"):
        release_notes().section(log, "0.9.0")


def test_pages_that_issue_forms_link_to_exist():
    forms = text_of(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"))
    pages = re.findall(rf"{re.escape(PROJECT['urls']['Documentation'])}/en/latest/([\w/]+)\.html", forms)
    assert pages
    assert [page for page in pages if not (ROOT / "docs" / f"{page}.md").exists()] == []
