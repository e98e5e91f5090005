"""The engine: it plans what to send, and sends it. No Airflow, HTTP or SQL."""
