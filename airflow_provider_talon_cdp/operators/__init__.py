"""Airflow operators, in modules by what they change."""
