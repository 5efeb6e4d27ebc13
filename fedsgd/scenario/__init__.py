"""Scenario: settings sections, parsing, overrides, warnings."""
