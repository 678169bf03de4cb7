"""The rules of health on simulated time: every rule, random healthy histories, injected faults, their cost."""
