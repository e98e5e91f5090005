"""Operators that read from a database and write to Talon.One."""
