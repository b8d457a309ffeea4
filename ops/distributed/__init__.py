"""Operators on DTensors: how they are sharded, and the rows that neighbours exchange."""
