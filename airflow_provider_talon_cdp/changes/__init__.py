"""What must change in Talon.One: no Airflow, HTTP or SQL, and files only in a temporary folder."""
