"""Live cameras: many streams through one plan, and out. `skipconv serve CONFIG` runs it.

sources  address, capture, inbox, camera: a thread per camera, its newest frames, its status
"""
