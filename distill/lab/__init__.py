"""Many runs and how fast they go: studies, tables, and benchmarks. Training works without this folder."""
