"""Measurements: optlayer beside its peers, and a report generated from what was measured."""
