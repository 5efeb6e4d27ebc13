"""Run of a scenario: build, execute, evaluate, record."""
