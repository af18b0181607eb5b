"""Comparisons over seeds: settings, runs, statistics, tables and plots."""
