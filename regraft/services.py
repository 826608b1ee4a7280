"""The services that `regraft up` started, as written down in the user's state folder."""

from dataclasses import dataclass
from pathlib import Path

from regraft.files import write_json
from regraft.processes import Process
from regraft.state import listed_services, services_file, state_folder

SERVERS = ("prefect", "mlflow")
STAGE_POOLS = ("cpu", "gpu")
# The last is for runs that only wait for stages on other pools: they must not take the places of these.
POOLS = (*STAGE_POOLS, "flows")
WORKERS = tuple(f"worker-{pool}" for pool in POOLS)
NAMES = (*SERVERS, *WORKERS)  # in the order of their start


@dataclass(frozen=True)
class Service:
    """One of `NAMES`, as it was started.

    Attributes:
        name: Which one.
        address: What its clients use; of a worker, the Prefect server that it asks for work.
        host: What the servers were told to listen on.
        process: The process that leads it.
    """

    name: str
    address: str
    host: str
    process: Process

    @property
    def log(self) -> Path:
        """Where it writes what it has to say."""
        return log_file(self.name)


def log_file(name: str) -> Path:
    """Return the file to which the output of the service `name` is appended."""
    return state_folder() / "logs" / f"{name}.log"


def mark_of(name: str) -> str:
    """Return what processes of the service `name` of this state folder, no others, carry as their mark."""
    return f"{state_folder()}:{name}"


def load() -> dict[str, Service]:
    """Return the services that were started and not stopped since, by name; some may have died.

    Raises:
        RegraftError: If the list is damaged.
    """
    return {
        name: Service(name, listed.address, listed.host, Process(listed.pid, listed.created, listed.mark))
        for name, listed in listed_services().items()
    }


def save(services: dict[str, Service]) -> None:
    """Write down `services`; none of them: forget the list."""
    if not services:
        services_file().unlink(missing_ok=True)
        return
    write_json(
        services_file(),
        {
            name: {"address": service.address, "host": service.host, **vars(service.process)}
            for name, service in services.items()
        },
    )
