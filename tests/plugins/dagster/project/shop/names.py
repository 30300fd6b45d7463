"""Constants that the definitions share."""

from enum import Enum, StrEnum

DATABASE = "database"
REGION = "eu"
WAREHOUSE = f"warehouse_{REGION}"
LAKE = "lake" + "_" + REGION
KEY = "dagster/concurrency_key"
HEAVY = {"database": "warehouse"}
BOTH = {**HEAVY, "team": "ml"}
TABLES = ["orders", "customers", "payments"]


class Pools:
    """Names in a class."""

    API = "api"
    MAIL = "mail" + ":" + "out"


class Kinds(StrEnum):
    """Members that are texts."""

    FAST = "fast"


class Sizes(Enum):
    """Members that are not."""

    LARGE = "large"


CHANGED = {"database": "warehouse"}
CHANGED["database"] = "lake"
