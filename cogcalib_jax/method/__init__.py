"""The mathematics of the method: terms, gates, the threshold's fit, the gated loss, their settings.

`config` imports no JAX. This room imports only the registry, configs' checks and errors.
"""
