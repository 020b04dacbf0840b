"""What an iteration costs, and what it could cost at least: figures and ratios taken side by side in one run.

``make bench`` prints them and writes ``results/speed.json``. Everything runs the shipped models through the classes and
configs of ``rlir train experiment=demo``. No test asserts a time: times belong to a machine, ratios to the code.
"""
