"""Measuring generated frames. The documented entries are the scripts beside this file.

Each entry run as `python metrics/x.py` puts the project's folder, not this one, on the path, so
that no module here can stand before a library of the same name.
"""
