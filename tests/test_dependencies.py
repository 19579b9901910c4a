"""What others promise to keep, and what they do not."""

import tomllib
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement

from tests.test_layout import ROOT
from tools.licences import licence_of

WANTED = [
    Requirement(text)
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
]
# Names of theirs are used that they keep to themselves, as pyproject.toml says beside each.
PRIVATE = ("mlx-lm", "huggingface-hub", "textual", "textual-plot", "streamlit", "uvicorn", "h11")


@pytest.mark.parametrize("name", PRIVATE)
def test_a_package_whose_private_names_are_used_has_an_upper_bound(name):
    found = [requirement for requirement in WANTED if requirement.name == name]
    assert found and all(any(bound.operator == "<" for bound in each.specifier) for each in found)


def test_every_package_that_a_user_gets_says_its_licence():
    here = [each.name for each in WANTED if each.marker is None or each.marker.evaluate()]
    assert not [name for name in here if not licence_of(distribution(name))]
