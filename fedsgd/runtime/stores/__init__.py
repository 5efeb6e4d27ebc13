"""Stores of client states."""
