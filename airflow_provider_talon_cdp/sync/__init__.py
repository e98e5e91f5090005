"""The engine: what to send, and sending it. Nothing here knows Airflow, HTTP or SQL."""
