"""Learning curves against areas known from geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.compare.curves import Curve, common_range, mean_height, reached


def test_a_triangle_has_half_the_height():
    assert mean_height(Curve.of([(0, 0), (10, 1)]), 0, 10) == pytest.approx(0.5)


def test_a_cut_falls_between_points():
    # From 5 to 10 the line y = x/10 averages 0.75.
    assert mean_height(Curve.of([(0, 0), (10, 1)]), 5, 10) == pytest.approx(0.75)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(-5, 5)), min_size=2, max_size=12, unique_by=lambda p: p[0]))
def test_the_area_is_numpys(points):
    curve = Curve.of(points)
    area = mean_height(curve, curve.x[0], curve.x[-1]) * (curve.x[-1] - curve.x[0])
    assert area == pytest.approx(np.trapezoid(curve.y, curve.x), abs=1e-9)


def test_points_come_in_any_order_and_the_last_of_equals_stands():
    assert Curve.of([(2, 0.1), (1, 0.5), (2, 0.9)]) == Curve((1, 2), (0.5, 0.9))


def test_two_curves_share_the_stretch_that_both_cover():
    a, b = Curve.of([(0, 0), (10, 1)]), Curve.of([(5, 0), (30, 1)])
    assert common_range(a, b) == (5, 10)
    assert common_range(a, Curve.of([(10, 1), (20, 1)])) is None
    assert common_range(a, Curve.of([])) is None


def test_a_threshold_is_reached_where_it_was_measured_not_before():
    curve = Curve.of([(0, 0.0), (10, 0.5), (20, 1.0), (30, 0.4)])
    assert reached(curve, 0.6) == 20
    assert reached(curve, 0.5) == 10
    assert reached(curve, 1.1) is None


def test_outside_of_a_curve_there_is_no_height():
    with pytest.raises(ValueError, match="outside"):
        Curve.of([(0, 0), (1, 1)]).at(2)
