"""What is known without measuring: predictions, sweeps, machine code."""
