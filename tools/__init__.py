"""Programs run on the project: benchmarks and the tables of docs/."""
