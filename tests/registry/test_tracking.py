"""Which stores are accepted, and what a damaged one is told to be."""

import pytest

from regraft.errors import RegistryError, RegraftError, SettingsError
from regraft.paths import Paths
from regraft.registry.published import is_published
from regraft.registry.tracking import connect, tracking_uri
from regraft.registry.versions import list_models
from regraft.settings import Settings


def with_store(uri):
    return Settings.model_validate({"name": "pets", "tracking": {"uri": uri}})


@pytest.mark.parametrize("uri", ["gopher://host/x", "htpp://user:secret@host:5000"])
def test_a_store_that_mlflow_does_not_know_is_refused_before_anything_runs(uri, tmp_path, monkeypatch):
    with pytest.raises(
        SettingsError, match=r"tracking.uri in params.yaml is .*no store of the kind 'gopher|htpp'"
    ) as caught:
        tracking_uri(Paths(tmp_path), with_store(uri))
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SettingsError, match="the variable MLFLOW_TRACKING_URI"):
        tracking_uri(Paths(tmp_path), with_store(None))


@pytest.mark.parametrize("uri", ["http://host:5000", "postgresql+psycopg2://host/db", "databricks", "file:///x"])
def test_stores_that_mlflow_knows_are_taken_as_they_are(uri, tmp_path):
    assert tracking_uri(Paths(tmp_path), with_store(uri)) == uri


@pytest.mark.parametrize("ask", [connect, list_models], ids=["opened", "listed"])
def test_a_damaged_database_is_said_to_be_one(ask, tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(RegistryError, match=r"mlflow.db is damaged: .*not a database.*backup"):
        ask(Paths(tmp_path), with_store(None))


@pytest.mark.parametrize("damaged", ['{"name": "pe', "[]"])
def test_a_damaged_report_of_the_last_publication_is_named(tmp_path, damaged):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "promotion.json").write_text(damaged)
    with pytest.raises(RegraftError, match=r"promotion.json is damaged.*Delete it and run again"):
        is_published(Paths(tmp_path), with_store(None), "0" * 64)
