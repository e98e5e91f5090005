"""Talon.One's generic CDP API over HTTP. Nothing here imports Airflow."""
