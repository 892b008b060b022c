"""Runs as files that other programs read: Neuronpedia, circuit-tracer, Delphi, HTML, tables.

What a format needs was read in the source of the program that reads it; each module says
in which file and commit.
"""

from extraction_kit.interchange.exports import Exports

__all__ = ["Exports"]
