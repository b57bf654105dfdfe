"""A project's settings, its workers, its MLflow store."""
