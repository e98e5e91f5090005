"""Airflow provider that keeps Talon.One in step with a data warehouse."""

__version__ = "0.1.0"
