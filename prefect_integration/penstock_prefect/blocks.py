"""The store's URL as a block of Prefect: kept by its API, encrypted, and the same for every process that reaches it."""

from __future__ import annotations

from typing import ClassVar

from penstock.errors import ConfigError, Fault, StoreUnavailable
from prefect.blocks.core import Block
from prefect.exceptions import PrefectHTTPStatusError
from pydantic import Field, SecretStr, ValidationError

SETTING = "PREFECT_INTEGRATIONS_PENSTOCK_STORE_BLOCK"


class PenstockStore(Block):  # type: ignore[misc]  # Prefect is not installed where types are checked
    """Where the limits are. `PREFECT_INTEGRATIONS_PENSTOCK_STORE_BLOCK` names the block that counts."""

    _block_type_name = "Penstock Store"
    _block_type_slug = "penstock-store"
    _description = "The store of the limits that Prefect, Airflow and scripts share."
    _code_example: ClassVar[str] = (
        "```python\n"
        "from penstock_prefect import PenstockStore\n\n"
        'PenstockStore(url="postgresql://penstock@db.example/penstock").save("limits")\n'
        "```"
    )

    url: SecretStr = Field(description="SQLAlchemy URL of the store; the same for every host that shares the limits.")


def store_url(name: str) -> str:
    """The store's URL, with its password, from the block of that name: a call to Prefect's API.

    Raises ConfigError when there is none of that name or it holds no URL, StoreUnavailable when the API cannot be
    asked now: a store that is named and not found never means "unlimited".
    """
    try:
        url: str = PenstockStore.load(name, _sync=True).url.get_secret_value()
    except ValidationError:  # its text may hold what the block holds
        raise _fault(f"the block {name!r} holds no store URL; save it again as a PenstockStore") from None
    except ValueError:
        raise _fault(
            f"Prefect has no block {PenstockStore._block_type_slug}/{name}; make it, or set store_url"
        ) from None
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        raise _fault(f"Prefect's API does not give out the block {name!r}: it answered {status}") from None
    except Exception as error:  # whatever the way to the API raises; its text may hold the API's address and user
        kind = type(error).__name__
        raise StoreUnavailable(f"Prefect's API does not tell its block {name!r} now ({kind})") from None
    if not url.strip():
        raise _fault(f"the block {name!r} holds an empty URL; save it again as a PenstockStore")
    return url.strip()


def _fault(message: str) -> ConfigError:
    return ConfigError([Fault(message, path=SETTING)])
