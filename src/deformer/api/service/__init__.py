"""The HTTP service: a model behind JSON, CSV and Parquet, sessions, and a page to play with."""
