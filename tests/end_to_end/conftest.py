"""The environments of both hosts, for all these tests."""

from host_environments import bins, home

__all__ = ["bins", "home"]
