"""Benchmarks of tables, one configuration for all: density, imputation and anomalies, beside published peers."""
