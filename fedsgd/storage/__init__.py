"""Files of a run: Parquet, CSV, run directory."""
