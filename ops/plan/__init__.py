"""What to run: pure functions from a problem to a plan. Nothing here sees a kernel or a tensor."""
