"""The network: configuration, decoder, LoRA, parameters on a mesh, and generation.

May import `sharding`, `configlib` and the rooms below them; reads no file.
"""
