"""What a run would cost on machines that are not here.

The command sets up its environment before jax is imported, so nothing is imported here.
"""
