"""Scores in files: what is read, what is refused, and a run that goes on where it was killed."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from rmtrl import Scorer
from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks.base import Item
from rmtrl.evaluation.items import read_scores, score_into, score_items, score_lines

ITEMS = [Item(f"i{n}", f"p{n}", "all", ("x" * (n + 1), "y" * (2 * n % 7 + 1))) for n in range(700)]
KEY = {"model": "m", "benchmark": "b", "rendering": None}


class Counting(Scorer):
    """A third of the text's length, which float32 does not hold exactly; counts what it scores."""

    def __init__(self):
        self.n = 0

    def score(self, conversations):
        self.n += len(conversations)
        return np.array([len(text) / 3 for text in conversations], dtype=np.float32)


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def plain(scores):
    return [None if own is None else own.tolist() for own in scores]


def test_scores_are_read_in_the_order_of_the_items_whatever_that_of_the_lines(tmp_path):
    rows = [{"id": "i2", "scores": [1, 2.5]}, {"id": "i0", "scores": [0.5, -1]}, {"id": "i1", "scores": None}]
    path = write(tmp_path / "s.jsonl", *rows, {"id": "i3", "scores": [None, None]}, "")
    assert plain(read_scores(path, ITEMS[:5])) == [[0.5, -1.0], None, [1.0, 2.5], None, None]


@pytest.mark.parametrize(
    ("ids", "given", "said"),
    [
        (("facts/1", "facts/2", "format/1"), ("2", "facts/1", "format/1"), None),
        (("facts/1", "facts/2", "format/1"), ("facts/2", "facts/1", "format/1"), None),
        (("facts/1", "facts/2", "format/1"), ("2", "1"), "'1' is of facts/1 and format/1; give the whole id"),
        (("facts/1", "facts/2", "format/1"), ("2", "facts/2"), "'facts/2' stands twice"),
        (("boiling", "salt"), ("boiling", "facts/salt"), None),
        (("boiling", "salt"), ("boiling", "facts/boiling"), "'boiling' stands twice"),
        (("boiling", "facts/boiling"), ("boiling", "facts/boiling"), None),
    ],
)
def test_an_item_may_be_named_with_its_subset_or_without(tmp_path, ids, given, said):
    items = [Item(id, id, id.split("/")[0] if "/" in id else "facts", ("x", "y")) for id in ids]
    path = write(tmp_path / "s.jsonl", *({"id": id, "scores": [n, 0]} for n, id in enumerate(given)))
    if said:
        with pytest.raises(DataError, match=said):
            read_scores(path, items)
    else:
        found = [own.tolist()[0] for own in read_scores(path, items)]
        assert sorted(found) == list(range(len(items)))


def test_an_id_of_the_benchmark_s_own_may_stand_without_the_part_before_it_where_it_is_one_item_s(tmp_path):
    items = [Item(id, id, "all", ("x", "y"), own_id=id.partition("/")[2]) for id in ("chat/1", "chat/2", "code/2")]
    rows = [{"id": 1, "scores": [1, 2]}, {"id": "code/2", "scores": [3, 4]}]
    assert plain(read_scores(write(tmp_path / "s.jsonl", *rows), items)) == [[1.0, 2.0], None, [3.0, 4.0]]
    for again, says in (("2", "row 3: the id '2' is of chat/2 and code/2; give the whole id"),
                        ("chat/1", "row 3: the item 'chat/1' stands twice"), ("3", "no item '3'")):  # fmt: skip
        with pytest.raises(DataError, match=says):
            read_scores(write(tmp_path / "s.jsonl", *rows, {"id": again, "scores": [1, 2]}), items)
    whole = [*items, Item("2", "2", "all", ("x", "y"))]  # an id that is one as it stands
    path = write(tmp_path / "s.jsonl", {"id": "2", "scores": [5, 6]})
    assert plain(read_scores(path, whole)) == [None, None, None, [5.0, 6.0]]


def test_a_failed_candidate_is_read_and_written(tmp_path):
    path = write(tmp_path / "s.jsonl", {"id": "i0", "scores": ["$ERROR$", 1.0]})
    (scores,) = read_scores(path, ITEMS[:1])
    assert scores.tolist() == [-np.inf, 1.0]
    assert next(score_lines(ITEMS[:1], [scores])) == {"id": "i0", "scores": ["$ERROR$", 1.0]}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"id": "z", "scores": [1, 2]}, "row 2: the benchmark has no item 'z'; its ids are like 'i0'"),
        ({"id": "i0", "scores": [1, 2]}, "'i0' stands twice"),
        ({"id": "i1", "scores": [1]}, "1 scores for 'i1'; wanted 2"),
        ({"id": "i1", "scores": 1}, "the scores '1' for 'i1'"),
        ({"id": "i1", "scores": []}, "0 scores"),
        ({"id": "i1", "scores": ["1", 2]}, "wanted numbers"),
        ({"id": "i1", "scores": [True, 2]}, "wanted numbers"),
        ({"id": "i1", "scores": [None, 2]}, "wanted numbers"),
        ('{"id": "i1", "scores": [NaN, 1]}', "wanted numbers"),
        ({"id": "i1"}, "wanted one line an item"),
        ("[1, 2]", "wanted one line an item"),
        ("{oops", "row 2 is not JSON"),
        ('{"id": "i1", "scores": [1' + "0" * 400 + ", 1]}", "wanted numbers"),
        ('{"id": "i1", "scores": [-1' + "0" * 400 + ", 1]}", "wanted numbers"),
        ('{"id": "i1", "scores": [Infinity, 1]}', "wanted numbers"),
        ("[" * 100_000, "row 2 is not JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_lines_that_are_no_scores_are_refused_by_number(tmp_path, line, says):
    with pytest.raises(DataError) as raised:
        read_scores(write(tmp_path / "s.jsonl", {"id": "i0", "scores": [1, 2]}, line), ITEMS)
    assert says in str(raised.value) and "s.jsonl" in str(raised.value)


def test_files_without_scores_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, says in (("empty", "is empty"), ("binary", "not UTF-8"), ("none", "No such file")):
        with pytest.raises(DataError, match=says):
            read_scores(tmp_path / f"{name}.jsonl", ITEMS)


def test_scores_of_a_run_are_those_of_the_scorer_and_can_be_read_again(tmp_path):
    path = tmp_path / "new" / "scores.jsonl"
    got = score_into(path, Counting(), ITEMS, key=KEY)
    wanted = [scores for window in score_items(Counting(), ITEMS) for scores in window]
    assert plain(got) == plain(wanted) == plain(read_scores(path, ITEMS))
    assert sorted(file.name for file in path.parent.iterdir()) == ["scores.jsonl", "scores.jsonl.key"]


class Killed(Counting):
    """Stops as a kill does, when it has scored so many conversations; a window of ITEMS has 500."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def score(self, conversations):
        if self.n >= self.after:
            raise KeyboardInterrupt
        return super().score(conversations)


def killed(path, after, **key):
    with pytest.raises(KeyboardInterrupt):
        score_into(path, Killed(after), ITEMS, key=KEY | key)


@pytest.fixture
def whole(tmp_path):
    """The bytes of a run that was never stopped."""
    score_into(tmp_path / "whole.jsonl", Counting(), ITEMS, key=KEY)
    return (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("windows", [0, 1, 2])
def test_a_killed_run_goes_on_to_the_same_file(tmp_path, whole, capsys, windows):
    path, scorer = tmp_path / "cut.jsonl", Counting()
    killed(path, 500 * windows)
    assert not path.exists()
    scores = score_into(path, scorer, ITEMS, key=KEY)
    assert path.read_bytes() == whole and plain(scores) == plain(read_scores(path, ITEMS))
    assert scorer.n == 1400 - 500 * windows
    said = f"rmtrl: items: {250 * windows} of 700 rows were scored by an earlier run, of the same model and data\n"
    assert capsys.readouterr().err == (said if windows else "")
    assert sorted(file.name for file in tmp_path.glob("*cut*")) == ["cut.jsonl", "cut.jsonl.key"]


def test_a_window_that_is_not_whole_is_scored_again(tmp_path, whole):
    path, scorer = tmp_path / "cut.jsonl", Counting()
    killed(path, 1000)
    parts = tmp_path / "cut.jsonl.parts"
    (parts / "1.jsonl").write_text((parts / "1.jsonl").read_text().partition("\n")[0])
    (parts / ".2.jsonl.new").write_text("torn")
    score_into(path, scorer, ITEMS, key=KEY)
    assert path.read_bytes() == whole and scorer.n == 900 and not parts.exists()


def test_lines_of_judgebench_s_own_files_are_read(tmp_path):
    path = write(tmp_path / "s.jsonl", {"pair_id": "i0", "source": "x", "score_A": 1.5, "score_B": 2})
    assert plain(read_scores(path, ITEMS[:1])) == [[1.5, 2.0]]


def test_scores_of_another_key_stay_until_the_new_ones_are_whole_and_are_never_taken(tmp_path, whole):
    path, scorer = tmp_path / "whole.jsonl", Counting()
    killed(path, 1000, model="n")
    assert path.read_bytes() == whole
    score_into(path, scorer, ITEMS, key=KEY | {"model": "n"})
    assert scorer.n == 400


@pytest.mark.parametrize("change", [lambda text: text[: len(text) // 2], lambda text: text.replace("1", "2", 1)])
def test_a_finished_file_that_was_changed_is_scored_again(tmp_path, whole, change):
    path, scorer = tmp_path / "whole.jsonl", Counting()
    path.write_text(change(path.read_text()))
    score_into(path, scorer, ITEMS, key=KEY)
    assert path.read_bytes() == whole and scorer.n == 1400


@pytest.mark.parametrize("part", ["model", "benchmark", "rendering"])
def test_another_model_benchmark_or_rendering_starts_again_and_says_so(tmp_path, whole, capsys, part):
    key, scorer = KEY | {part: "another"}, Counting()
    killed(tmp_path / "cut.jsonl", 500)
    for path in (tmp_path / "cut.jsonl", tmp_path / "whole.jsonl"):
        score_into(path, scorer, ITEMS, key=key, name="mine")
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("rmtrl: mine: the scores in ") and said.endswith("scoring starts again")
    assert scorer.n == 2800


def test_a_complete_file_is_not_scored_again_under_the_same_key(tmp_path, whole, capsys):
    again = Counting()
    scores = score_into(tmp_path / "whole.jsonl", again, ITEMS, key=KEY)
    assert again.n == 0 and plain(scores) == plain(read_scores(tmp_path / "whole.jsonl", ITEMS))
    assert "700 of 700 rows were scored by an earlier run" in capsys.readouterr().err


def test_scores_of_unknown_origin_stay_until_the_new_ones_are_whole(tmp_path):
    path = write(tmp_path / "scores.jsonl", {"id": "i0", "scores": [9, 9]})

    class Fails(Counting):
        def score(self, conversations):
            if self.n:
                raise KeyError("later")
            return super().score(conversations)

    with pytest.raises(RuntimeError, match="one of the items i250 to i499: KeyError"):
        score_into(path, Fails(), ITEMS, key=KEY)
    assert json.loads(path.read_text()) == {"id": "i0", "scores": [9, 9]}
    rest = Counting()
    score_into(path, rest, ITEMS, key=KEY)
    assert rest.n == 900 and len(path.read_text().splitlines()) == 700


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write .*scores.jsonl: "):
        score_into(tmp_path / "file" / "scores.jsonl", Counting(), ITEMS, key=KEY)


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_item_files import ITEMS, KEY, Counting, score_into

class Slow(Counting):
    def score(self, conversations):
        if self.n >= 1000:
            print("third window", flush=True)
            import time
            time.sleep(60)
        return super().score(conversations)

score_into(Path(sys.argv[2]), Slow(), ITEMS, key=KEY)
"""


@pytest.mark.integration
def test_a_run_that_is_killed_goes_on_where_it_stopped(tmp_path, whole):
    path, scorer = tmp_path / "scores.jsonl", Counting()
    folder = __file__.rpartition("/")[0]
    with subprocess.Popen([sys.executable, "-c", KILLED, folder, str(path)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "third window\n"
        run.send_signal(signal.SIGKILL)
    assert not path.exists()
    score_into(path, scorer, ITEMS, key=KEY)
    assert scorer.n == 400 and path.read_bytes() == whole
    assert not list(tmp_path.glob(".*"))
