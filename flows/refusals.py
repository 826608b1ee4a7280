"""What a Prefect server's failure to answer means to a person."""

import httpx

from regraft.errors import RegraftError, ResourceError

REFUSED = (401, 403)
LOGIN = "set PREFECT_API_AUTH_STRING to the USER:PASSWORD that it was started with (PREFECT_SERVER_API_AUTH_STRING)."


def is_refusal(error: Exception) -> bool:
    """Return whether a server answered that it does not know who asks."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in REFUSED


def explained(error: httpx.HTTPError, address: str | None, advice: str) -> RegraftError:
    """Return what to raise in place of `error`: a refused login is not worth another try, all else may be.

    Args:
        error: What a client of the server raised.
        address: Of the server's API.
        advice: What to do if it is not the login, as a sentence.
    """
    if is_refusal(error):
        return RegraftError(f"the Prefect server at {address} refuses the login: {LOGIN}")
    return ResourceError(
        f"the Prefect server at {address} does not answer as it should ({error or type(error).__name__}). {advice}"
    )
