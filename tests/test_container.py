"""What can be proven about the image and compose.yaml without an engine; `make check` has their linter and schema."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from regraft.paths import REPOSITORY
from regraft.services import POOLS
from regraft.settings import load_settings

CONTAINERS = REPOSITORY / "containers"
COMPOSE = YAML(typ="safe").load((REPOSITORY / "compose.yaml").read_text("utf-8"))
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("regraft:")}
LINES = re.sub(r"\\\n", " ", (REPOSITORY / "Dockerfile").read_text("utf-8")).splitlines()


def test_every_path_it_copies_exists_and_is_let_through_by_dockerignore():
    lines = (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = []
    for line in LINES:
        if line.startswith("COPY ") and "--from" not in line:
            copied += shlex.split(line)[1:-1]
    assert {"requirements.lock", "flows", "params.yaml", "containers"} <= set(copied)
    for path in copied:
        assert (REPOSITORY / path).exists(), path
        assert path in allowed, path


def test_it_ends_as_a_numbered_user_without_privileges():
    assert [line for line in LINES if line.startswith("USER ")] == ["USER 10001"]


def test_each_variant_installs_a_lock_file_with_hashes_and_no_registry_address():
    script = next(line for line in LINES if "--require-hashes" in line)
    assert '-r "$lock" -c "$lock"' in script  # see Makefile
    for name in re.findall(r"lock=(\S+)", script):
        content = (REPOSITORY / name).read_text("utf-8")
        assert "--hash=sha256:" in content
        assert "http" + "s://" not in content
        assert "index-url" not in content
        assert re.search(r"^hatchling==", content, re.MULTILINE)  # the project is built without a download
    assert re.search(r"^nvidia-cudnn-cu12==", (REPOSITORY / "requirements-gpu.lock").read_text(), re.MULTILINE)


def test_the_lock_files_hold_what_the_services_need():
    for name in ("requirements.lock", "requirements-gpu.lock"):
        content = (REPOSITORY / name).read_text("utf-8")
        for package in ("psycopg-binary", "boto3", "dvc-s3", "flask-wtf"):
            assert re.search(rf"^{package}==", content, re.MULTILINE), (name, package)


def test_every_service_comes_back_by_itself_says_how_it_is_and_has_time_to_stop():
    assert set(SERVICES) == {"postgres", "s3", "prefect", "mlflow", "init", "worker-cpu", "worker-gpu", "worker-flows"}
    for name, service in SERVICES.items():
        assert service["restart"] == ("no" if name == "init" else "unless-stopped"), name
        assert ("healthcheck" in service) == (name != "init"), name
        assert "stop_grace_period" in service, name
        assert service["logging"]["options"]["max-size"], name
    # What regraft.processes.stop may take: 5 s, 20 s and, after a kill, 20 s.
    assert SERVICES["worker-cpu"]["stop_grace_period"] == SERVICES["worker-gpu"]["stop_grace_period"] == "90s"


def test_no_port_is_open_to_other_machines():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports), ports
    assert not any({"network_mode", "privileged"} & set(service) for service in SERVICES.values())


def test_our_services_have_no_privileges_and_others_a_fixed_version():
    for name, service in SERVICES.items():
        if name in OURS:
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert "user" not in service, name  # the image's
        else:
            assert re.search(r":\d", service["image"]), name


def test_secrets_are_files_that_neither_git_nor_the_image_gets():
    listed = re.search(r"^SECRETS := (.*)$", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert listed
    made = set(listed[1].split())
    assert {name: source["file"] for name, source in COMPOSE["secrets"].items()} == {
        name: f"./secrets/{name}" for name in made
    }
    assert {name for service in SERVICES.values() for name in service.get("secrets", [])} == made
    assert "/secrets/" in (REPOSITORY / ".gitignore").read_text("utf-8").splitlines()
    assert (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()[0] == "*"
    assert not (REPOSITORY / ".dockerignore").read_text("utf-8").count("secrets")
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD$|SECRET|TOKEN|AUTH_STRING", variable), (name, variable)
            assert not re.search("//[^/@]*:[^/@]*@", str(value)), (name, variable)


def test_services_wait_for_those_they_need():
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == ("service_completed_successfully" if other == "init" else "service_healthy")
            assert ("healthcheck" in SERVICES[other]) == (other != "init"), (name, other)
    assert {"prefect", "mlflow", "s3", "init"} == set(SERVICES["worker-cpu"]["depends_on"])


def test_a_worker_of_each_pool_keeps_what_dvc_notes_of_processes_to_its_container():
    for pool in POOLS:
        worker = SERVICES[f"worker-{pool}"]
        command = worker["command"]
        assert command[command.index("--pool") + 1] == pool
        assert worker["tmpfs"] == ["/project/.dvc/tmp:mode=1777"]
        assert [volume.rpartition("}:")[2] for volume in worker["volumes"]] == ["/project", "/data:ro"]
        assert worker["environment"]["PREFECT_SERVER_EPHEMERAL_ENABLED"] == "false"
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    assert SERVICES["worker-gpu"]["build"]["args"] == {"VARIANT": "gpu"}


def test_all_files_that_are_mounted_or_named_exist():
    named = set(
        re.findall(r"(?<![\w/])(?:\./|/app/)(containers/[\w./-]+)", (REPOSITORY / "compose.yaml").read_text("utf-8"))
    )
    assert {"containers/set-up", "containers/databases.sql", "containers/mlflow-accounts.ini"} == named
    for name in ("set-up", "with-secrets"):
        assert (CONTAINERS / name).stat().st_mode & stat.S_IXOTH, name
    assert '"/app/containers/with-secrets"]' in (REPOSITORY / "Dockerfile").read_text("utf-8")


@pytest.mark.parametrize("name", ["prefect", "mlflow", "worker-cpu"])
def test_its_command_is_one_that_the_installed_versions_understand(name, tmp_path):
    command = [part.replace("${REGRAFT_CPU_RUNS:-2}", "2") for part in SERVICES[name]["command"]]
    if command[0] == "python":
        assert command[:5] == ["python", "-P", "-m", "flows.worker", "--pool"]
        program = [sys.executable, "-m", "prefect", "worker", "start"]
    else:
        program = [sys.executable, "-m", command[0], *(part for part in command[1:3] if not part.startswith("-"))]
    said = subprocess.run([*program, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    for option in [part.partition("=")[0] for part in command if part.startswith("--")]:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", said), option


def with_secrets(folder, *, environment=None):
    """Return (exit code, the variables that a command gets by containers/with-secrets, what it says)."""
    done = subprocess.run(
        [CONTAINERS / "with-secrets", sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"],
        env={"PATH": os.environ["PATH"], "REGRAFT_SECRETS": str(folder), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_secrets_become_the_variables_that_servers_and_clients_read(tmp_path):
    for name in COMPOSE["secrets"]:
        (tmp_path / name).write_text(f"{name} of mine\n")
    code, environment, _ = with_secrets(tmp_path)
    assert code == 0
    assert {name: value for name, value in environment.items() if "of mine" in value} == {
        "PGPASSWORD": "postgres_password of mine",
        "AWS_SECRET_ACCESS_KEY": "s3_secret_key of mine",
        "PREFECT_SERVER_API_AUTH_STRING": "regraft:prefect_password of mine",
        "PREFECT_API_AUTH_STRING": "regraft:prefect_password of mine",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "mlflow_password of mine",
        "MLFLOW_TRACKING_PASSWORD": "mlflow_password of mine",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "mlflow_flask_key of mine",
    }
    for name in ("AWS_ACCESS_KEY_ID", "MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_TRACKING_USERNAME"):
        assert environment[name] == "regraft"
    assert with_secrets(tmp_path, environment={"AWS_ACCESS_KEY_ID": "mine"})[1]["AWS_ACCESS_KEY_ID"] == "mine"


def test_without_secrets_the_image_runs_as_it_is(tmp_path):
    code, environment, _ = with_secrets(tmp_path)
    assert code == 0
    assert not [name for name in environment if name.startswith(("AWS_", "MLFLOW_", "PREFECT_", "PG"))]


def test_an_empty_secret_is_an_error_and_nothing_is_started(tmp_path):
    (tmp_path / "prefect_password").touch()
    code, environment, said = with_secrets(tmp_path)
    assert (code, environment) == (1, {})
    assert "prefect_password is empty" in said


def test_secrets_are_made_once_at_random_and_for_this_user_alone(tmp_path):
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    made = []
    for _ in range(2):
        subprocess.run(["make", "secrets"], cwd=tmp_path, capture_output=True, check=True)
        made.append({file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()})
    assert made[0] == made[1]
    assert set(made[0]) == set(COMPOSE["secrets"])
    assert len(set(made[0].values())) == len(made[0])
    assert all(re.fullmatch("[0-9a-f]{64}\n", value) for value in made[0].values())
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "secrets").iterdir()} == {0o644}


@pytest.fixture
def set_up(tmp_path):
    """Return a function that runs containers/set-up where all it calls is noted down instead of done.

    `regraft init` makes params.yaml and `dvc remote add` a remote; a pool is there from its creation on.
    """
    programs, project, calls = tmp_path / "bin", tmp_path / "project", tmp_path / "calls"
    programs.mkdir()
    project.mkdir()
    script = f"""#!/bin/sh
echo "$(basename "$0") $*" >> {calls}
case "$(basename "$0") $1 $2" in
    "prefect work-pool inspect") [ -e "{tmp_path}/pool-$3" ] ;;
    "prefect work-pool create") touch "{tmp_path}/pool-$3" ;;
    "regraft init .") touch params.yaml ;;
    "dvc remote list") [ ! -e remote ] || cat remote ;;
    "dvc remote add") echo store > remote ;;
esac
"""
    for name in ("prefect", "regraft", "dvc", "python"):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)

    def run(**environment):
        calls.write_text("")
        settings = {"REGRAFT_SOURCE": "folder:/data/pets", "REGRAFT_NAME": "pets", "REGRAFT_BUCKET": "models"}
        path = {"PATH": f"{programs}:{os.environ['PATH']}"}
        subprocess.run([CONTAINERS / "set-up"], cwd=project, env=path | settings | environment, check=True)
        return [line for line in calls.read_text().splitlines() if "inspect" not in line and "list" not in line]

    return run


def test_init_sends_the_project_to_the_pool_that_is_asked_for(set_up, tmp_path):
    shutil.copy(REPOSITORY / "params.yaml", tmp_path / "project" / "params.yaml")
    set_up(REGRAFT_POOL="gpu")
    assert load_settings(tmp_path / "project" / "params.yaml").placement.pool == "gpu"


def test_init_makes_pools_project_bucket_remote_and_deployments_once(set_up, tmp_path):
    assert set_up() == [
        "prefect work-pool create cpu --type process",
        "prefect work-pool create gpu --type process",
        "prefect work-pool create flows --type process",
        "regraft init . --source folder:/data/pets --name pets",
        "python - models",
        "dvc remote add --default store s3://models/dvc",
        "regraft deploy",
    ]
    assert (tmp_path / "project" / ".dvc" / "tmp").is_dir()
    assert set_up() == ["python - models", "regraft deploy"]


def test_init_deploys_on_a_schedule_if_one_is_set(set_up):
    assert set_up(REGRAFT_CRON="0 3 * * *")[-1] == "regraft deploy --cron 0 3 * * * --timezone UTC"
    again = set_up(REGRAFT_CRON="0 3 * * *", REGRAFT_TIMEZONE="Europe/Berlin")
    assert again[-1] == "regraft deploy --cron 0 3 * * * --timezone Europe/Berlin"


@pytest.mark.parametrize("kind", ["kubernetes-gpu", "docker-gpu"])
def test_a_pool_template_asks_for_gpus_and_uses_the_variables_it_declares(kind):
    text = (CONTAINERS / "pools" / f"{kind}.json").read_text("utf-8")
    template = json.loads(text)
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    if kind == "docker-gpu":
        kwargs = template["job_configuration"]["container_create_kwargs"]
        assert kwargs["device_requests"] == [{"driver": "nvidia", "count": "{{ gpus }}", "capabilities": [["gpu"]]}]
        return
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert pod["securityContext"]["runAsUser"] == 10001
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {
        each["name"] for each in pod["volumes"]
    }
