"""Classes that travel by value: one object for all arrivals in a process, and the process's own when they come back."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from chatlearn.errors import DataError
from chatlearn.runtime.wire import decode, encode

SENDER = """
import dataclasses, enum, pathlib, sys
import torch
from chatlearn.runtime.wire import decode, encode

@dataclasses.dataclass
class Sample:
    text: str
    scores: object = None
    limit = 3
    seen = []
    def shown(self):
        return f"{self.text} {self.limit}"

class Plain:
    def __init__(self, x):
        self.x = x

class Tall(Plain):
    def twice(self):
        return 2 * self.x

class Color(enum.Enum):
    RED = 1

folder = pathlib.Path(sys.argv[1])
def send(name, value):
    (folder / name).write_bytes(encode(value))
"""

RECEIVER = """
import pathlib, sys
from chatlearn.runtime.wire import decode, encode
folder = pathlib.Path(sys.argv[1])
def receive(name):
    return decode((folder / name).read_bytes())
"""


def run(folder: Path, head: str, body: str) -> str:
    """What a script prints; it runs in a process of its own, as ``__main__``."""
    command = [sys.executable, "-c", head + textwrap.dedent(body), str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_all_arrivals_are_of_one_class(tmp_path):
    run(
        tmp_path,
        SENDER,
        """
        send("first", [Sample("a"), Plain(1), Tall(2), Color.RED, {"more": (Sample("b", Tall(3)),)}])
        send("second", {"x": Sample("c"), "y": Plain(4), "z": Tall(5), "c": Color.RED})
        send("third", [Sample, Plain, Tall, Color])
        """,
    )
    printed = run(
        tmp_path,
        RECEIVER,
        """
        a, plain, tall, red, more = receive("first")
        second = receive("second")
        classes = receive("third")
        print([type(a), type(plain), type(tall), type(red)] == classes)
        print([type(value) for value in second.values()] == classes, second["c"] is red)
        print(type(more["more"][0]) is type(a), type(more["more"][0].scores) is type(tall))
        print(isinstance(second["z"], type(plain)), second["z"].twice(), a.shown(), more["more"][0].scores.x)
        """,
    )
    assert printed.splitlines() == ["True", "True True", "True True", "True 10 a 3 3"]


def test_what_a_worker_keeps_on_a_class_outlasts_its_next_arrival_but_not_a_change_at_home(tmp_path):
    run(
        tmp_path,
        SENDER,
        """
        send("one", [Sample("a")])
        send("two", [Sample("b")])
        Sample.limit = 7
        send("three", [Sample("c")])
        Sample.limit = 3
        send("four", [Sample("d")])
        """,
    )
    printed = run(
        tmp_path,
        RECEIVER,
        """
        (a,) = receive("one")
        type(a).seen.append("kept")
        (b,) = receive("two")
        print(b.seen, b.shown())
        (c,) = receive("three")
        print(c.seen, c.shown(), type(c) is type(a))
        (d,) = receive("four")
        print(d.shown())
        """,
    )
    assert printed.splitlines() == ["['kept'] b 3", "[] c 7 True", "d 3"]


def test_what_comes_back_is_of_the_process_s_own_class_which_stays_as_it_is(tmp_path):
    """The sender's script runs on while another process answers."""
    answer = """
    import subprocess
    answering = '''
    import pathlib, sys
    from chatlearn.runtime.wire import decode, encode
    path = pathlib.Path(sys.argv[1]) / "message"
    sample, plain = decode(path.read_bytes())
    type(sample).limit = 100
    sample.text += "!"
    path.write_bytes(encode([sample, plain, type(sample)("new"), type(sample)]))
    '''
    import textwrap
    seen, shown = Sample.seen, Sample.shown
    send("message", [Sample("a"), Tall(2)])
    subprocess.run([sys.executable, "-c", textwrap.dedent(answering), sys.argv[1]], check=True)
    sample, plain, new, kind = decode((folder / "message").read_bytes())
    print(type(sample) is Sample, type(plain) is Tall, type(new) is Sample, kind is Sample)
    print(sample.shown(), new.shown(), Sample.limit, Sample.seen is seen, Sample.shown is shown)
    """
    assert run(tmp_path, SENDER, answer).splitlines() == ["True True True True", "a! 3 new 3 3 True True"]


def test_a_class_is_sent_once_with_all_of_its_objects(tmp_path):
    sizes = run(
        tmp_path,
        SENDER,
        """
        print(*[len(encode([kind(str(i)) for i in range(n)])) for kind in (Sample, Plain) for n in (1, 100)])
        print(len(encode(Sample)), len(encode(Plain)))
        """,
    )
    one, hundred, plain_one, plain_hundred, alone, plain_alone = map(int, sizes.split())
    assert hundred - one < 99 * 40
    assert plain_hundred - plain_one < 99 * 60
    assert one < alone + 100
    assert plain_one < plain_alone + 100


def test_a_class_of_a_function_travels_there_and_back_within_the_process():
    class Local:
        def __init__(self, x):
            self.x = x

    got = decode(encode([Local(1), Local]))
    assert got[1] is Local
    assert (type(got[0]), got[0].x) == (Local, 1)


def test_what_can_t_be_imported_on_arrival_is_named(tmp_path, monkeypatch):
    (tmp_path / "far_away.py").write_text(
        "import dataclasses\n\n@dataclasses.dataclass\nclass Point:\n    x: int\n\nclass Plain:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import far_away

    point, kind, plain = encode([far_away.Point(1)]), encode(far_away.Point), encode(far_away.Plain())
    assert decode(point) == [far_away.Point(1)]
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "far_away")
    for data in (point, kind):
        with pytest.raises(
            DataError, match=r"far_away:Point can't be imported here \(.*\): ModuleNotFoundError: No mod"
        ):
            decode(data)
    with pytest.raises(DataError, match=r"can't be made here \(.*\): ModuleNotFoundError: No module named 'far_away'"):
        decode(plain)


def test_a_class_that_is_gone_from_its_module_is_named(tmp_path, monkeypatch):
    (tmp_path / "changing.py").write_text("class Outer:\n    class Inner:\n        pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import changing

    data = encode(changing.Outer.Inner)
    assert decode(data) is changing.Outer.Inner
    del changing.Outer.Inner
    with pytest.raises(DataError, match=r"changing:Outer\.Inner can't be imported here .*AttributeError.*PYTHONPATH"):
        decode(data)
