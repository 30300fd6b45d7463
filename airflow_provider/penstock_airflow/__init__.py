"""The Airflow provider of Penstock. Nothing loads here: each seam of Airflow has a module of its own."""
