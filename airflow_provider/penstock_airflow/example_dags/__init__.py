"""DAGs to read and to copy. Each runs as it is, on any limits; `airflow_provider/README.md` says what they show."""
