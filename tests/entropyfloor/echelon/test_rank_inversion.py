from entropyfloor.echelon.predictors import rank_inversions
from entropyfloor.echelon.rungs import read_rungs
from made_up_echelon import measures, plan_of


def cells_of(pairs, *, seed=0, loss="ce", half=0.03):
    """(pass@1 before, pass@10 after) by depth; pass@1 after RL is .1 throughout."""
    return [
        {
            "loss": loss,
            "seed": seed,
            "depth": float(depth + 1),
            "before": measures(0.5, rate, 0.5, half=half),
            "after": {"50": measures(0.1, 0.1, (outcome - 0.1) / 0.9, half=half)},
        }
        for depth, (rate, outcome) in enumerate(pairs)
    ]


def found_in(cells, scope="ce", outcome="peak_pass_at_10"):
    plan = plan_of(cells)
    rungs, _ = read_rungs(cells, plan)
    every = {(i.outcome, i.scope): i for i in rank_inversions(rungs, plan)}
    return every.get((outcome, scope))


def test_pairs_are_counted():
    # Of six pairs: four turned, one kept (.2 and .3), one tied in pass@1 (.3 and .3).
    pairs = [(0.1, 0.9), (0.2, 0.5), (0.3, 0.6), (0.3, 0.4)]
    (order,) = found_in(cells_of(pairs)).by_seed.values()
    assert (order.rungs, order.kept, order.turned) == (4, 1, 4)
    assert order.inverted
    # Clear: pass@1 and outcome each more than .06 apart.
    assert order.clear == 4
    assert (order.picked, order.picked_place) == (("ce", 3.0), 2)  # the shallower of equals
    assert order.best == ("ce", 1.0) and order.apart


def test_intervals_that_overlap_are_not_clear():
    wide = cells_of([(0.1, 0.9), (0.2, 0.5)], half=0.06)
    (order,) = found_in(wide).by_seed.values()
    assert (order.turned, order.clear, order.apart) == (1, 0, True)


def test_the_same_order_is_no_inversion():
    inversion = found_in(cells_of([(0.1, 0.4), (0.2, 0.5), (0.3, 0.6)]))
    (order,) = inversion.by_seed.values()
    assert (order.kept, order.turned, order.inverted) == (3, 0, False)
    assert inversion.inverted == () and order.picked_place == 1


def test_a_tied_outcome_is_neither():
    (order,) = found_in(cells_of([(0.1, 0.4), (0.2, 0.4)])).by_seed.values()
    assert (order.kept, order.turned, order.inverted, order.picked_place) == (0, 0, False, 1)


def test_seeds_and_scopes():
    turned, kept = [(0.1, 0.9), (0.2, 0.5)], [(0.1, 0.4), (0.2, 0.5)]
    cells = cells_of(turned) + cells_of(kept, seed=1) + cells_of(turned, loss="sed")
    assert found_in(cells).inverted == (0,)
    assert found_in(cells, scope="sed").inverted == (0,)
    assert found_in(cells, scope=None).by_seed[0].rungs == 4
    assert found_in(cells, scope=None).by_seed[1].rungs == 2


def test_one_rung_is_nothing_to_compare():
    assert found_in(cells_of([(0.1, 0.9)])) is None
