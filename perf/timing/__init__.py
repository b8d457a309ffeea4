"""How calls are timed and checked, and the machine that they run on."""
