"""The verbs of ``rlir``, one file each, and what they share; the only place that reads configs."""
