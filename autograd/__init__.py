"""What the user differentiates: functions, layers and learning, on top of the operators."""
