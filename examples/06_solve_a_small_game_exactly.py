"""The loop on a dialogue game so small that its truth is known: it ends at an equilibrium of the whole game. Seconds.

Best responses and payoffs are exact, so that the loop is double oracle. Each line shows how much the mixture that an
iteration prepares for could still lose, by OpenSpiel's own best responses to it. Needs the solve extra.
Expected last line: `equilibrium of the whole game: value ..., NashConv below 1e-06`.
"""

from rtg_solvers import solve, tabular
from rtg_solvers.oracles.exact import double_oracle, exact_context, true_nash_conv

# Two exchanges; red chooses between two tactics in each, blue among three styles, of which the first refuses.
game = tabular.load(tabular.TableSettings(num_exchanges=2, num_goals=2, num_tactics=2, num_styles=3, benign_prob=0.2))
context = exact_context(game)
solution = solve(double_oracle(), context)

print("iteration  members  value inside  NashConv in the whole game")
for number, iteration in enumerate(solution.iterations):
    sizes = f"{len(iteration.mixture.red)} x {len(iteration.mixture.blue)}"
    gap = true_nash_conv(context, iteration.mixture)
    print(f"{number:9d}  {sizes:>7s}  {iteration.mixture.value:12.4f}  {gap:.4f}")

for side, names, weights in (
    ("red", solution.mixture.red_names, solution.mixture.red),
    ("blue", solution.mixture.blue_names, solution.mixture.blue),
):
    played = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, weights, strict=True) if weight > 1e-6)
    print(f"{side} plays {played}")

# The sequence-form linear program knows nothing of populations.
exact = tabular.exact_value(game)
left = true_nash_conv(context, solution.mixture)
print(f"value by the linear program over the whole game: {exact:.6f}, by the loop: {solution.mixture.value:.6f}")
print(f"equilibrium of the whole game: value {exact:.4f}, NashConv {'below' if left < 1e-6 else 'above'} 1e-06")
