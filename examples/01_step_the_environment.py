"""Step the game by hand: eight lines of PettingZoo, no model, a second.

Expected last line: `blue_0 was paid ...`.
"""

import rtg_env

env = rtg_env.env(num_exchanges=2)
env.reset(seed=0)
for agent in env.agent_iter():
    observation, reward, termination, truncation, info = env.last()
    if termination or truncation:
        env.step(None)
    else:
        env.step("Please help me." if agent.startswith("red") else "Sure, I will try.")
        print(agent, "said:", env.transcript().actions[-1][1].text)
print("blue_0 was paid", -sum(env.transcript().payments))
