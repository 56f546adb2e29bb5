"""rtg_agents: who speaks. Policies, generation backends, model files, populations."""
