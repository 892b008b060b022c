"""The main job, end to end, on a real language model: ``python -m extraction_kit.demo``.

SmolLM2-135M reads Python's own documentation; a small SAE is trained on one of its residual
streams and registered; its extraction is launched, watched and shown. Whatever was made
once is kept in the workspace, so that a second run shows the results in seconds.
"""
