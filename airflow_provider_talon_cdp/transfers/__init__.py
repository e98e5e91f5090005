"""Airflow operators that read from one system and write to Talon.One."""
