"""Airflow operators, one module for each thing they act on."""
