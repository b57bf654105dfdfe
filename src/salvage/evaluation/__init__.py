"""What a policy is worth: protocols, budgets, the null line, the gate before a champion."""
