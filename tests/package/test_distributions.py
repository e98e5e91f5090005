"""What the wheel and the sdist hold."""

from __future__ import annotations

import email
import re
import zipfile
from pathlib import Path

import pytest

import airflow_provider_talon_cdp
from airflow_provider_talon_cdp.provider_info import get_provider_info

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "airflow_provider_talon_cdp"
VERSION = airflow_provider_talon_cdp.__version__


def sources(folder):
    """Paths of a folder's files as the checkout has them, relative to the checkout."""
    return {
        str(path.relative_to(ROOT))
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", ".hypothesis"} & set(path.parts) and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_package_the_examples_and_the_metadata_and_nothing_else(wheel_names):
    code = {name for name in wheel_names if ".dist-info/" not in name}
    assert code == sources(PACKAGE) | {f"{PACKAGE.name}/{path}" for path in sources(ROOT / "example_dags")}


def test_the_metadata_names_pages_of_the_project(metadata):
    urls = dict(each.split(", ", 1) for each in metadata.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= set(urls)
    assert all(url.startswith("https://") for url in urls.values())
    assert metadata["Author"]


def test_type_checkers_find_the_package_typed(wheel_names):
    assert "airflow_provider_talon_cdp/py.typed" in wheel_names


def test_the_wheel_carries_the_license(wheel_names, metadata):
    assert f"airflow_provider_talon_cdp-{VERSION}.dist-info/licenses/LICENSE" in wheel_names
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"


def test_a_package_index_shows_the_readme(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True).decode().strip() == (ROOT / "README.md").read_text().strip()


def test_the_wheel_registers_the_provider(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/entry_points.txt"))
        text = archive.read(name).decode()
    assert "[apache_airflow_provider]" in text
    assert "provider_info = airflow_provider_talon_cdp.provider_info:get_provider_info" in text


def test_the_sdist_also_holds_examples_and_tests_with_all_that_they_need(sdist_names):
    wanted = sources(PACKAGE) | {"LICENSE", "Makefile", "pyproject.toml", "tests/conftest.py"}
    wanted.add(".airflow-registry.yaml")
    wanted |= {
        path for path in sources(ROOT / "example_dags") | sources(ROOT / "tests") if path.endswith(".py")
    }
    wanted |= sources(ROOT / "bench") | sources(ROOT / "constraints") | sources(ROOT / "demo")
    assert wanted <= set(sdist_names)


def test_the_sdist_holds_nothing_else(sdist_names):
    tops = {name.split("/")[0] for name in sdist_names if name}
    assert tops <= {
        "airflow_provider_talon_cdp",
        "example_dags",
        "tests",
        "bench",
        "constraints",
        "demo",
        "docs",
        "Makefile",
        "mkdocs.yml",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        ".airflow-registry.yaml",
        # Hatchling adds these two.
        ".gitignore",
        "PKG-INFO",
    }
    assert not [name for name in sdist_names if "__pycache__" in name or "/." in name]


def test_the_version_stands_in_one_place(metadata):
    assert metadata["Version"] == VERSION
    assert get_provider_info()["versions"] == [VERSION]
    # An option's "version_added" stays what it was when the version moves on.
    literal = re.compile(rf'(?<!"version_added": ")\b{re.escape(VERSION)}\b')
    files = [ROOT / "pyproject.toml", *PACKAGE.rglob("*.py")]
    assert [path for path in files if literal.search(path.read_text())] == [PACKAGE / "__init__.py"]
