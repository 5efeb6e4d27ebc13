"""Replication of published tables: studies, their runs, and the comparison of measured with published figures."""
