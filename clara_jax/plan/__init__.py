"""What a run would cost on machines that are not here.

* ``topology``: ``v5e:4x4``, ``h100:8`` or ``cpu:8`` to chips and devices; finds libtpu
* ``cases``: what is planned: work, backbone, machine, mesh, and what a sweep varies
* ``programs``: shapes and places of arrays; compiles, measures, and keeps the figures
* ``collectives``: what a compiled program sends, loops counted
* ``flops``: operations by our own count
* ``summary``: memory, a floor of the time and advice, in words and tables; the sweep

The command sets up its environment before jax is imported, so nothing is imported here.
"""
