"""What a solved stack and its table show: the numbers behind every figure of the report, and nothing drawn.

Unless said otherwise a stack stands in its order here: input half k and output half k are the block at position k
(`Stack.arranged`). Means are over the rows given.
"""

from dropjax.reporting.analysis.blocks import Blocks, effective_rank, measure_blocks, products
from dropjax.reporting.analysis.commuting import Commutators, by_distance, commutators
from dropjax.reporting.analysis.learning import signals
from dropjax.reporting.analysis.orders import Decisions, Disorder, Exchange, decisions, disorder, places_in, rank_correlation
from dropjax.reporting.analysis.pairs import RightPairs, WrongPairs, entry_variance, right_pairs, wrong_pairs
from dropjax.reporting.analysis.repairs import BothWays, Route, repair_both_ways, repair_route, sweep_back
from dropjax.reporting.analysis.tables import Table, describe_table

__all__ = [
    "Blocks",
    "BothWays",
    "Commutators",
    "Decisions",
    "Disorder",
    "Exchange",
    "RightPairs",
    "Route",
    "Table",
    "WrongPairs",
    "by_distance",
    "commutators",
    "decisions",
    "describe_table",
    "disorder",
    "effective_rank",
    "entry_variance",
    "measure_blocks",
    "places_in",
    "products",
    "rank_correlation",
    "repair_both_ways",
    "repair_route",
    "right_pairs",
    "signals",
    "sweep_back",
    "wrong_pairs",
]
