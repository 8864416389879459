import unittest
from collections import Counter

import reads
import soak
import stall
from arithmetic import Goal, Spread, percentile, ratios, regressions, shares, slope
from callgrind import Profile, profile
from cross_check import of_oha
from measure import head_room, in_words
from strace import by_thread
from where import group_of, grouped


class Arithmetic(unittest.TestCase):
    def test_ratios_compare_values_of_the_same_round(self):
        found = ratios([10, 30, 20], [10, 10, 10])
        self.assertEqual((found.median, found.low, found.high), (2, 1, 3))
        # A machine that slows down in a round slows down both.
        self.assertEqual(ratios([10, 100, 10], [5, 50, 5]).relative, 0)
        with self.assertRaises(ValueError):
            ratios([1], [0])
        with self.assertRaises(ValueError):
            ratios([1, 2], [1])

    def test_a_slope_excludes_fixed_costs(self):
        self.assertEqual(slope((100, 5_000_100), (300, 5_000_300)), 1)
        with self.assertRaises(ValueError):
            slope((10, 1), (10, 2))

    def test_a_verdict_compares_a_value_with_the_limits_of_its_goal(self):
        goal = Goal(1, "CPU per event", "nginx", 1.25, 1.15)
        self.assertEqual([goal.verdict(value) for value in (1.15, 1.2, 1.26)],
                         ["aim", "must", "missed"])
        self.assertEqual(goal.verdict(1.3, reference_spread=0.2), "must (noisy)")
        self.assertEqual(goal.verdict(1.6, reference_spread=0.2), "missed")
        self.assertEqual(goal.verdict(1.3, reference_spread=0.05), "missed")
        self.assertEqual(Goal(None, "reported only", "nginx", None, None).verdict(7), "")
        more = Goal(22, "recorded requests", "autocommit", 12, 25, more=True)
        self.assertEqual([more.verdict(value) for value in (30, 12, 11)], ["aim", "must", "missed"])
        self.assertEqual(more.verdict(11, reference_spread=0.2), "must (noisy)")
        self.assertEqual(more.verdict(9, reference_spread=0.2), "missed")

    def test_a_percentile_is_one_of_the_values(self):
        self.assertEqual([percentile(range(1, 51), percent) for percent in (50, 95, 100)], [25, 48, 50])
        self.assertEqual(percentile([3.5], 95), 3.5)

    def test_regressions_are_found(self):
        baseline = {"a": 1000.0, "b": 3.0, "c": 0.0}
        self.assertEqual(regressions(baseline, {"a": 1049.0, "b": 3.0, "c": 0.0}), [])
        found = regressions(baseline, {"a": 1060.0, "c": 1.0, "d": 1.0})
        self.assertEqual([line.split(":")[0] for line in found], ["a", "b", "c", "d"])

    def test_a_spread_has_a_relative_range_and_keeps_each_round(self):
        self.assertAlmostEqual(Spread.of([9, 10, 11]).relative, 0.2)
        self.assertEqual(Spread.of([1, 2, 3]).text(1), "2.0 (1.0–3.0)")
        # Small ratios keep their significant digits, and each round is kept.
        self.assertEqual(Spread.of([1 / 80]).text(), "0.0125 (0.0125–0.0125)")
        self.assertEqual(Spread.of([3, 1, 2]).rounds, (3, 1, 2))

    def test_headroom_compares_rates_of_the_same_round(self):
        rooms = head_room({"direct": [{"seconds": 1}, {"seconds": 2}],
                           "nginx": [{"seconds": 2}, {"seconds": 4}],
                           "keybridge": [{"seconds": 4}, {"seconds": 8}]})
        self.assertEqual((rooms["nginx"].median, rooms["keybridge"].median), (2, 4))
        self.assertTrue(in_words(rooms).endswith("; under 3: nginx"), in_words(rooms))

    def test_each_function_has_a_group(self):
        expected = {
            "malloc": "allocation", "_int_free'2": "allocation", "__rustc::__rdl_alloc": "allocation",
            "__memcpy_avx_unaligned_erms": "memcpy and similar",
            "aws_lc_0_47_0_sha256_block_data_order_avx": "SHA-256 and other digests",
            "<std::sys::pal::unix::time::Timespec>::now": "clock",
            "tokio::runtime::io::driver::Driver::turn": "tokio: scheduler, timers, sockets",
            # The first crate in a name decides, whichever trait is implemented.
            "<keybridge_net::chunks::Merging<S> as hyper::rt::io::Read>::poll_read":
                "keybridge: relay and observation",
            "keybridge_bridge::call::line::{{closure}}": "keybridge: request line",
            "core::ptr::drop_in_place<hyper::proto::h1::dispatch::Client<T>>": "hyper: client",
            "<hyper_util::server::conn::auto::Connection<I,S,E> as core::future::future::Future>::poll":
                "hyper: server",
            "hyper::proto::h1::io::Buffered<T,B>::poll_flush": "HTTP, both sides",
            "memchr::arch::x86_64::avx2::memchr::Two::find_raw": "wire: JSON, SSE, search",
            "<alloc::string::String as core::iter::traits::collect::FromIterator<char>>::from_iter":
                "standard library",
            "an_unknown_function": "other",
        }
        self.assertEqual({name: group_of(name) for name in expected}, expected)

    def test_a_profile_is_parsed(self):
        found = profile(PROFILE)
        self.assertEqual((found.total, found.allocations), (140, 3))
        # The cost of a callee is not counted for its caller.
        self.assertEqual(found.functions, {("main", "a.rs"): 30, ("main", "b.rs"): 10, ("malloc", "m.c"): 100})
        groups = grouped([found, Profile(50, 0, Counter({("walWrite", "sqlite3.c"): 50}))])
        self.assertEqual(groups, {"allocation": 100, "other": 40, "ledger's own threads": 50})
        self.assertAlmostEqual(sum(shares(groups).values()), 1)

    def test_a_soak_reports_steady_memory_and_growth(self):
        cells = soak.row("keybridge", 10, [10, 18, 20, 20, 20, 20, 22, 22], 11).split("|")
        steady, growth, most, rest, to_steady, to_start = (float(cell) for cell in cells[3:9])
        self.assertEqual((steady, growth, most, rest, to_start), (21, 1.1, 22, 11, 1.1))
        self.assertAlmostEqual(to_steady, 11 / 21, 2)

    def test_oha_results_count_only_if_every_request_succeeded(self):
        result = {"summary": {"requestsPerSec": 2000.0}, "latencyPercentiles": {"p50": 0.0005},
                "statusCodeDistribution": {"200": 10}, "errorDistribution": {}}
        self.assertEqual(of_oha(result, 10), {"rate": 2000.0, "p50": 500.0})
        with self.assertRaises(RuntimeError):
            of_oha(result, 11)

    def test_responses_are_summarised_by_when_their_requests_were_sent(self):
        answers = [(1, "200", 0.1), (2, "503", 5.0), (2.5, "503", 3.0), (9, "200", 0.1)]
        self.assertEqual(stall.answered(answers, 2, 9), "2 × 503 after 4.00 s (longest 5.00)")
        self.assertEqual(stall.answered(answers, 10, 11), "none")

    def test_system_calls_are_grouped_by_thread(self):
        found = by_thread(STRACE)
        self.assertEqual(found["11"], [("epoll_wait", 0.5), ("read", 0.000020)])
        self.assertEqual(found["12"], [("write", None)])

    def test_the_rows_of_an_answer_are_those_of_its_longest_list(self):
        def rows(body):
            return reads.Answer(200, body).rows()
        self.assertEqual(rows(b'{"items": [1, 2, 3], "next_cursor": null}'), 3)
        self.assertEqual(rows(b'{"models": ["a"], "interceptions": [1, 2]}'), 2)
        self.assertEqual((rows(b'{"items": []}'), rows(b'{"id": "a"}')), (0, 1))

    def test_a_call_that_only_some_releases_have_is_not_there_rather_than_failed(self):
        def note(call, status, body=b"{}"):
            row = reads.Row(call)
            reads.note_refusal(row, reads.Answer(status, body))
            self.assertIn(row.note, row.text())
            return row.note, row.has_failed
        some, every = reads.Call("usage", "/usage", is_optional=True), reads.Call("sessions", "/sessions")
        self.assertEqual(note(some, 404), ("not there", False))
        self.assertEqual(note(every, 404), ("**FAILED** 404", True))
        self.assertEqual(note(some, 504), ("**FAILED** 504", True))
        unknown = b'{"error": {"kind": "invalid_request", "message": "unknown parameter `model`"}}'
        self.assertFalse(note(some, 400, unknown)[1])
        self.assertTrue(note(every, 400, unknown)[1])

    def test_the_plans_of_a_log_are_counted_by_statement(self):
        found = reads.logged_plans(PLANS)
        self.assertEqual(found, {
            "SELECT a FROM b WHERE c = $1": (2, "Seq Scan on b  (cost=0.00..2 rows=1)\n  Filter: c"),
            "SELECT 1": (1, "Result  (cost=0.00..0.01 rows=1)")})


PROFILE = """version: 1
events: Ir
fl=(1) a.rs
fn=(1) main
10 20
+1 10
cfi=(2) m.c
cfn=(2) malloc
calls=3 40
* 100
fi=(3) b.rs
7 10
fl=(2)
fn=(2)
40 100

totals: 140
"""
PLANS = """2026-11-29 10:13:32.098 UTC [8293] LOG:  duration: 0.020 ms  plan:
\tQuery Text: SELECT a
\t  FROM b WHERE c = $1
\tSeq Scan on b  (cost=0.00..2 rows=1)
\t  Filter: c
2026-11-29 10:13:32.098 UTC [8293] LOG:  checkpoint starting: time
2026-11-29 10:13:32.099 UTC [8293] LOG:  duration: 0.017 ms  plan:
\tQuery Text: SELECT 1
\tResult  (cost=0.00..0.01 rows=1)
2026-11-29 10:13:32.100 UTC [8293] LOG:  duration: 0.020 ms  plan:
\tQuery Text: SELECT a FROM b WHERE c = $1
\tIndex Scan on b  (cost=0.00..1 rows=1)
"""
STRACE = """11 epoll_wait(3, <unfinished ...>
12 write(4, "a", 1) = 1
11 <... epoll_wait resumed>[], 8, 1) = 0 <0.500000>
11 read(3, "a", 1) = 1 <0.000020>
11 +++ exited with 0 +++
"""


if __name__ == "__main__":
    unittest.main()
