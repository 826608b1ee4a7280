"""Aliases moved by hand: promote a version, roll back, and what later runs make of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from regraft.errors import RegistryError
from regraft.registry import tracking
from regraft.registry.aliases import promote, rollback
from tests.registry.small_projects import NEVER_RED, Project
from tests.registry.test_publish import aliases, publish_project


@pytest.fixture
def refused(make_project: Callable[..., Project], tmp_path: Path) -> Project:
    """Version 1 is champion, version 2 was refused for being worse."""
    publish_project(make_project(tmp_path))
    project = make_project(tmp_path, order=NEVER_RED)
    assert not publish_project(project).promoted
    return project


def test_a_version_that_was_refused_is_the_challenger_until_it_is_promoted(refused: Project) -> None:
    assert aliases(refused) == {"champion": 1, "challenger": 2}
    with pytest.raises(RegistryError, match=r"version 2 of colours is not made champion: .*worse.*--despite-gates"):
        promote(refused.paths, refused.settings, "colours@challenger")
    assert aliases(refused) == {"champion": 1, "challenger": 2}
    outcome = promote(refused.paths, refused.settings, "colours/2", despite_gates=True)
    assert outcome == {"name": "colours", "champion": 2, "previous": 1, "moved": True}
    assert aliases(refused) == {"champion": 2, "previous": 1}
    assert not promote(refused.paths, refused.settings, "colours/2")["moved"]


def test_a_better_model_is_no_challenger_any_more(make_project: Callable[..., Project], tmp_path: Path) -> None:
    assert not publish_project(make_project(tmp_path, order=NEVER_RED, minimum=0.9)).promoted
    strict = make_project(tmp_path, minimum=0.9)
    publish_project(strict)
    assert aliases(strict) == {"champion": 2, "challenger": 1}
    lenient = make_project(tmp_path, order=NEVER_RED, minimum=0.6, tolerance=0.5)
    assert publish_project(lenient).promoted
    assert aliases(lenient) == {"champion": 1, "previous": 2}


def test_rolling_back_lasts_and_twice_is_as_before(make_project: Callable[..., Project], tmp_path: Path) -> None:
    project = make_project(tmp_path, order=NEVER_RED)
    publish_project(project)
    with pytest.raises(RegistryError, match="has no alias 'previous'"):
        rollback(project.paths, project.settings)
    project = make_project(tmp_path)
    publish_project(project)
    assert rollback(project.paths, project.settings) == {
        "name": "colours", "champion": 1, "previous": 2, "moved": True,
    }  # fmt: skip
    assert not publish_project(project).promoted
    assert aliases(project) == {"champion": 1, "previous": 2}
    assert rollback(project.paths, project.settings)["champion"] == 2


def test_a_move_that_was_cut_off_half_way_is_not_rolled_back(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = make_project(tmp_path)
    publish_project(project)
    client = tracking.connect(project.paths, project.settings)
    client.set_registered_model_alias("colours", "previous", "1")  # and then `champion` was not moved on
    with pytest.raises(RegistryError, match="both champion and previous"):
        rollback(project.paths, project.settings)
