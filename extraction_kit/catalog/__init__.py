"""What was found: published results as Parquet, questions about them through DuckDB.

``publish`` writes and checks results, ``reading`` asks one run's files, ``session`` answers
SQL over all runs, ``snapshot`` writes ``catalog.duckdb`` for other programs, ``tables`` has
every column with its unit. Import from those.
"""
