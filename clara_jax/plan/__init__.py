"""What a run would cost on machines that are not here.

* ``chips``: memory, speed and links of accelerators, with sources
* ``topology``: ``v5e:4x4``, ``h100:8`` or ``cpu:8`` to devices; finds libtpu
* ``case``: one thing to plan: work, backbone, topology, mesh
* ``programs``: shapes and places of all that a program takes; the functions themselves
* ``compile``: lowers and compiles them, and keeps the figures on disk
* ``hlo``: collectives and memory traffic of a compiled program, loops counted
* ``flops``: operations by our own count
* ``arrays``: the table of every array and where it lies
* ``estimate``, ``report``, ``sweep``: what to make of it

The command sets up its environment before JAX is imported, so nothing is imported here.
"""
