"""Talon.One's generic CDP API over HTTP. It imports nothing of Airflow."""
