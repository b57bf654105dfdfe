"""The lab: micro models trained in minutes on a CPU, whose rollouts, failures and rescues are real."""
