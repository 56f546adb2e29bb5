"""Published methods, each a config and a choice of solver, oracles and schedule."""
