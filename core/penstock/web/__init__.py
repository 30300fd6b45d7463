"""The concurrency page: every limit, who holds and who waits, in a browser. Needs the extra `web`."""
