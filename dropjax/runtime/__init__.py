"""Devices, meshes, compiled programs, rows within a memory budget, the journal of a search, files that are written whole."""
