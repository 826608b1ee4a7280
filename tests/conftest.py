"""Every test runs apart from the user's own Prefect, MLflow and caches."""

import os

import pytest

# Set before any test imports Prefect or TensorFlow, and inherited by the processes tests start.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(_name, None)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

# Prefect sets logging up when it is imported, and closes the streams of the handlers that are there: after TensorFlow,
# whose handler holds pytest's own.
import prefect.main  # noqa: E402, F401


@pytest.fixture(scope="session", autouse=True)
def _own_prefect_home(tmp_path_factory):
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    os.environ["REGRAFT_STATE"] = str(tmp_path_factory.mktemp("state"))


def pytest_collection_modifyitems(items):
    """Begin with the file that takes longest, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_end_to_end.py")
