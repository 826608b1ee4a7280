"""What belongs to this user on this machine and to no project: where it is kept, and which servers are to be used.

The servers are those that `regraft up` wrote down, whether they answer or not, until `regraft down`: a run that fell
back to a database of its own because a server was down for a minute would split the registry in two.
"""

import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from regraft.errors import RegraftError
from regraft.files import write_text


def state_folder() -> Path:
    """Return the folder: REGRAFT_STATE, else `regraft` in the user's state folder; it may not exist yet."""
    if given := os.environ.get("REGRAFT_STATE"):
        return Path(given).expanduser().resolve()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "regraft"


def cache_folder() -> Path:
    """Return the folder of what can be had or made again: REGRAFT_CACHE, else `~/.cache/regraft`; it may not exist."""
    return Path(os.environ.get("REGRAFT_CACHE") or Path.home() / ".cache" / "regraft")


def machine_id() -> str:
    """Return what tells this state folder's machine from others of the same host name: 6 hexadecimal digits."""
    file = state_folder() / "machine"
    if not file.exists():
        write_text(file, secrets.token_hex(3))
    return file.read_text("utf-8")


def services_file() -> Path:
    """Return the file that lists the services of `regraft up`; see `regraft.services`."""
    return state_folder() / "services.json"


class ListedService(BaseModel):
    """A service in the list of `regraft up`; see `regraft.services.Service`."""

    model_config = ConfigDict(strict=True)

    address: str = Field(pattern=r"^http://\S+:\d{1,5}(/|$)")
    host: str
    pid: PositiveInt
    created: float
    mark: str


def listed_services() -> dict[str, ListedService]:
    """Return the services that `regraft up` wrote down, by name.

    Raises:
        RegraftError: If the list is damaged.
    """
    file = services_file()
    if not file.exists():
        return {}
    try:
        return TypeAdapter(dict[str, ListedService]).validate_json(file.read_bytes())
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = f"{'.'.join(map(str, fault['loc']))}: " if fault["loc"] else ""
        raise RegraftError(
            f"{file} is damaged ({where}{fault['msg']}). It lists what `regraft up` started; `regraft down` ends all "
            "that without the list, and `regraft up` starts anew."
        ) from error


def server(name: str) -> str | None:
    """Return the address that clients of the server `name` (prefect, mlflow) use; None if it is not meant to be up.

    Raises:
        RegraftError: If the list of services is damaged.
    """
    listed = listed_services().get(name)
    return listed.address if listed else None
