"""Formats of trained SAEs, one module each: what their files say, without torch.

Each module has ``describe(folder, file)``, which returns an `SaeSpec` without its digest:
which formula encodes, where each of its tensors is in the weight file, and where it reads.
Whatever is not understood is refused by name: an SAE read by the wrong formula gives
numbers that look right.
"""
