"""What an iteration costs, and what it could cost at least: figures and ratios taken side by side in one run.

``make bench`` prints them and writes ``results/speed_tokens.json`` and ``speed_denoising.json``. Everything runs
through the classes and configs of ``rlir train experiment=demo`` and ``doom_nfd_paper``: tokens with the shipped
models, denoising with untrained ones of the same and of larger sizes. No test asserts a time: times belong to a
machine, ratios to the code.
"""
