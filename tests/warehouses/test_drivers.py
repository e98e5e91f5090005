"""The environment of `make test-warehouses` has what the tests with databases need."""

from __future__ import annotations

import importlib
import shutil

import pytest

DRIVERS = [
    "databricks.sql",
    "duckdb",
    "fakesnow",
    "google.cloud.bigquery",
    "mysql.connector",
    "redshift_connector",
    "snowflake.connector",
]
HOOKS = [
    "airflow.providers.amazon.aws.hooks.redshift_sql",
    "airflow.providers.databricks.hooks.databricks_sql",
    "airflow.providers.duckdb.hooks.duckdb",
    "airflow.providers.google.cloud.hooks.bigquery",
    "airflow.providers.mysql.hooks.mysql",
    "airflow.providers.snowflake.hooks.snowflake",
]


@pytest.mark.filterwarnings("ignore")  # their own, at import
@pytest.mark.parametrize("module", DRIVERS + HOOKS)
def test_a_driver_or_hook_imports(module):
    assert importlib.import_module(module).__name__ == module


def test_the_default_driver_of_mysql_is_there_where_mariadb_is():
    if shutil.which("mariadbd") is None:
        pytest.skip(
            "no MariaDB server here; Debian: apt install mariadb-server libmariadb-dev gcc pkg-config"
        )
    assert importlib.import_module("MySQLdb").get_client_info()


def test_the_driver_of_databricks_tells_variant_from_text():
    """As its fake does, which takes its place in the other tests."""
    pyarrow = importlib.import_module("pyarrow")
    types = importlib.import_module("databricks.sql.thrift_api.TCLIService.ttypes")
    client = importlib.import_module("databricks.sql.backend.thrift_backend").ThriftDatabricksClient
    text = types.TTypeEntry(primitiveEntry=types.TPrimitiveTypeEntry(type=types.TTypeId.STRING_TYPE))
    column = types.TColumnDesc(columnName="x", typeDesc=types.TTypeDesc(types=[text]))

    def kind(name):
        field = pyarrow.field("x", pyarrow.string(), metadata={"Spark:DataType:SqlName": name})
        return client._col_to_description(column, field)[1]

    assert (kind("VARIANT"), kind("STRING")) == ("variant", "string")
