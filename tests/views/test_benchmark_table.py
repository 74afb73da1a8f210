"""The table of a benchmark: what it shows of intervals, warnings and undefined figures."""

from jax_interp.views.benchmark_table import benchmark_rows, estimate, print_benchmark


def one(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "over": "3 reseeds"}


def measure(name, warning="", spread=None, **estimates):
    return {
        "name": name,
        "meaning": "what it is",
        "better": "higher",
        "estimates": estimates,
        "gain": None,
        "warning": warning,
        "spread": spread,
        "better_than_random": "unclear",
    }


FIGURES = {
    "measures": [
        measure("TPP, top 2", "unreliable", 0.25, dictionary=one(0.5, 0.25, 0.75), random=one(0.1)),
        measure("TPP, top 5", "unreliable", 0.5, dictionary=one(None), random=one(0.1)),
    ],
    "l0": {"dictionary": 16.04, "random": 16},
    "left_out": {"scr": "no second labels"},
    "tables": {"unused": {"a": "a has 40 classes", "b": "b has 3"}},
}


def test_numbers():
    assert estimate(one(0.71234, 0.69, 0.73)) == "0.712 [0.690, 0.730]"
    assert estimate(one(132.24, 128.2, 136.25)) == "132.2 [128.2, 136.2]"
    assert estimate(one(0.5)) == "0.500"
    assert estimate(one(None)) == estimate(None) == "–"


def test_rows_have_a_column_for_each_coder():
    headings, rows = benchmark_rows(FIGURES)
    assert headings == ["", "better", "dictionary", "random", "better than random?"]
    assert rows[0] == ["TPP, top 2 (!)", "higher", "0.500 [0.250, 0.750]", "0.100", "unclear"]
    assert rows[1][2] == "–"


def test_what_is_printed_below(capsys):
    print_benchmark(FIGURES, "x")
    out = capsys.readouterr().out
    assert out.count("what it is. The interval is over 3 reseeds.") == 1
    assert "(!) unreliable; here the standard deviation over reseeds is 25 %, 50 % of the mean" in out
    assert "dictionary 16.0, random 16.0" in out
    assert "not measured: scr: no second labels" in out
    assert "2 tables were not used, such as a has 40 classes" in out
