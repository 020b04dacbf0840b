"""Recorders play a game and write what they did in VPT's format, so that real and own recordings share one reader."""
