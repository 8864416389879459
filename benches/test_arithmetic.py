import unittest

from arithmetic import Goal, Spread, ratios, regressions, slope
from measure import head_room, in_words


class Arithmetic(unittest.TestCase):
    def test_ratios_are_of_the_same_round(self):
        found = ratios([10, 30, 20], [10, 10, 10])
        self.assertEqual((found.median, found.low, found.high), (2, 1, 3))
        # A machine that slows down in a round slows both.
        self.assertEqual(ratios([10, 100, 10], [5, 50, 5]).relative, 0)
        with self.assertRaises(ValueError):
            ratios([1], [0])
        with self.assertRaises(ValueError):
            ratios([1, 2], [1])

    def test_slope_leaves_the_beginning_out(self):
        self.assertEqual(slope((100, 5_000_100), (300, 5_000_300)), 1)
        with self.assertRaises(ValueError):
            slope((10, 1), (10, 2))

    def test_verdicts(self):
        goal = Goal(1, "CPU per event", "nginx", 1.25, 1.15)
        self.assertEqual([goal.verdict(value) for value in (1.15, 1.2, 1.26)],
                         ["aim", "must", "missed"])
        self.assertEqual(goal.verdict(1.3, yardstick_spread=0.2), "must (noisy)")
        self.assertEqual(goal.verdict(1.6, yardstick_spread=0.2), "missed")
        self.assertEqual(goal.verdict(1.3, yardstick_spread=0.05), "missed")
        self.assertEqual(Goal(None, "told only", "nginx", None, None).verdict(7), "")
        more = Goal(22, "recorded requests", "autocommit", 12, 25, more=True)
        self.assertEqual([more.verdict(value) for value in (30, 12, 11)], ["aim", "must", "missed"])
        self.assertEqual(more.verdict(11, yardstick_spread=0.2), "must (noisy)")
        self.assertEqual(more.verdict(9, yardstick_spread=0.2), "missed")

    def test_regressions_are_found(self):
        baseline = {"a": 1000.0, "b": 3.0, "c": 0.0}
        self.assertEqual(regressions(baseline, {"a": 1049.0, "b": 3.0, "c": 0.0}), [])
        found = regressions(baseline, {"a": 1060.0, "c": 1.0, "d": 1.0})
        self.assertEqual([line.split(":")[0] for line in found], ["a", "b", "c", "d"])

    def test_spread(self):
        self.assertAlmostEqual(Spread.of([9, 10, 11]).relative, 0.2)
        self.assertEqual(Spread.of([1, 2, 3]).text(1), "2.0 (1.0–3.0)")
        # Small ratios keep digits that mean something, and each round is kept.
        self.assertEqual(Spread.of([1 / 80]).text(), "0.0125 (0.0125–0.0125)")
        self.assertEqual(Spread.of([3, 1, 2]).rounds, (3, 1, 2))

    def test_head_room_is_of_the_same_round(self):
        rooms = head_room({"direct": [{"seconds": 1}, {"seconds": 2}],
                           "nginx": [{"seconds": 2}, {"seconds": 4}],
                           "keybridge": [{"seconds": 4}, {"seconds": 8}]})
        self.assertEqual((rooms["nginx"].median, rooms["keybridge"].median), (2, 4))
        self.assertTrue(in_words(rooms).endswith("; under 3: nginx"), in_words(rooms))


if __name__ == "__main__":
    unittest.main()
