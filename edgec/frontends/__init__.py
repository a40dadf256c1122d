"""Checkpoint -> canonical graph."""
