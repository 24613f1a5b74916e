"""Answers that reasoning-gym evaluates: what they can't do, what they leave behind, and their scores otherwise."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import socket
import subprocess
import sys

import pytest
import reasoning_gym
from reasoning_gym.composite import DatasetSpec

from chatlearn.errors import DataError
from chatlearn.rewards import ReasoningGymReward, confined
from chatlearn.rewards.confined import EVALUATING, ConfinedScorer
from chatlearn.rewards.helper import Helper

ENTRY = {"question": "?", "answer": "1 2 3", "metadata": {}}
"""For ``spiral_matrix``, which gives 1 to the answer, 0.1 to a Python list of its parts, and 0 to all else."""
OS = "__import__('os')"


@pytest.fixture(scope="module")
def reward():
    return ReasoningGymReward("spiral_matrix")


def scores(reward, *answers, entry=ENTRY):
    return reward(["?"] * len(answers), list(answers), [entry] * len(answers))


def helper_of(reward):
    return reward._scorer._helper._child.process


# -- Scores ------------------------------------------------------------------------------------------------------------

WRONG = ["", "42", "answer: 5", "1/0", "x = 3", "[[1, 2][3, 4]]", "2(3)", "3x²", "(", "\x00", "sin(x)**2 + f(x)", "[]"]
WRONG += ["integrate(x**2, x)", "product(x, (x, 1, 4))", "solve(x**2 - 1)", "list(primerange(99999))"]


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("dataset", sorted(EVALUATING))
def test_scores_are_the_librarys_own(dataset):
    data = reasoning_gym.create_dataset(dataset, seed=7, size=3)
    pairs = [(data[i]["answer"], data[i]) for i in range(3)] + [(data[1]["answer"], data[0])]
    pairs += [(answer, data[2]) for answer in WRONG]
    expected = [data.score_answer(answer, entry) for answer, entry in pairs]
    assert expected[:3] == [1.0] * 3
    assert min(expected) < 0.1
    made = ReasoningGymReward(dataset)
    assert isinstance(made._scorer, ConfinedScorer)
    assert made(["?"] * len(pairs), [answer for answer, _ in pairs], [entry for _, entry in pairs]) == expected


def test_a_python_list_gets_a_tenth_and_with_binary_nothing(reward):
    assert scores(reward, "1 2 3", "[1, 2, 3]", "[3]") == [1.0, 0.1, 0.0]
    assert scores(ReasoningGymReward("spiral_matrix", binary=True), "1 2 3", "[1, 2, 3]") == [1.0, 0.0]


def test_other_data_sets_are_scored_in_process():
    assert not isinstance(ReasoningGymReward("spell_backward")._scorer, ConfinedScorer)


def test_a_composite_data_set_is_confined_where_it_has_to_be():
    specs = [DatasetSpec(name, 1.0, {}) for name in ("spiral_matrix", "spell_backward")]
    reward = ReasoningGymReward("composite", datasets=specs)
    entry = {"question": "?", "answer": "1 2 3", "metadata": {"source_dataset": "spiral_matrix"}}
    assert scores(reward, "1 2 3", "[1, 2, 3]", f"{OS}._exit(0)", entry=entry) == [1.0, 0.1, 0.0]
    entry = {"question": "?", "answer": "nus", "metadata": {"source_dataset": "spell_backward", "word": "sun"}}
    assert scores(reward, "nus", entry=entry) == [1.0]
    assert not isinstance(reward._scorer.datasets["spell_backward"], ConfinedScorer)


def test_fields_of_the_config_reach_the_scorer():
    """puzzle24 gives 0.01 to an answer with numbers beyond the largest one of its config, which is 10 if unsaid."""
    entry = {"question": "?", "answer": "8 + 8 + 4 + 4", "metadata": {}}
    assert scores(ReasoningGymReward("puzzle24"), "8 + 8 + 4 + 4", entry=entry) == [1.0]
    assert scores(ReasoningGymReward("puzzle24", max_value=6), "8 + 8 + 4 + 4", entry=entry) == [0.01]


def test_an_item_whose_own_answer_raises_is_no_answers_fault(reward):
    with pytest.raises(DataError, match=r"raises KeyError: 'answer'.*the item's own answer.*leave the item out"):
        scores(reward, "1 2", entry={"question": "?", "metadata": {}})


def test_an_item_whose_own_answer_runs_into_a_limit_is_refused(monkeypatch):
    monkeypatch.setattr(confined, "ANSWER_SECONDS", 0.5)
    reward = ReasoningGymReward("polynomial_multiplication")
    with pytest.raises(DataError, match=r"ends its process.*limit is 0\.5 s.*That is the item's own answer"):
        scores(reward, "x", entry={"question": "?", "answer": "factorial(10**9)", "metadata": {}})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))])
def test_copies_have_a_helper_of_their_own(reward, duplicate):
    assert scores(reward, "1 2 3") == [1.0]
    twin = duplicate(reward)
    assert twin._scorer._helper._child is None
    assert scores(twin, "1 2 3", "[3]") == [1.0, 0.0]
    assert helper_of(twin).pid != helper_of(reward).pid


# -- What an answer can't do -------------------------------------------------------------------------------------------

ATTACKS = {
    "writes a file": "open('FILE', 'w').write('x')",
    "empties a file": "open('THERE', 'w')",
    "removes a file": f"{OS}.remove('THERE')",
    "renames a file": f"{OS}.rename('THERE', 'FILE')",
    "changes rights": f"{OS}.chmod('THERE', 0)",
    "makes a folder": f"{OS}.mkdir('FILE')",
    "reads a file": "[open('THERE').read()]",
    "opens a socket": "__import__('socket').create_connection(('127.0.0.1', PORT))",
    "starts a process": "__import__('subprocess').Popen(['touch', 'FILE'])",
    "starts a shell": f"{OS}.system('touch FILE')",
    "becomes another program": f"{OS}.execv('/bin/sh', ['sh', '-c', 'touch FILE'])",
    "forks": f"{OS}.fork()",
    "signals the helper": f"{OS}.kill({OS}.getppid(), 9)",
    "raises its limits": "__import__('resource').setrlimit(__import__('resource').RLIMIT_NOFILE, (9, 9))",
    "calls into machine code": "__import__('ctypes').string_at(0)",
    "imports what is not there yet": "__import__('antigravity')",
    "looks into frames": "[__import__('sys')._getframe(1).f_locals['entry']['answer']]",
    "takes 10 GB": "[bytearray(10**10)]",
    "ends its process": f"{OS}._exit(0)",
    "raises SystemExit": "exit()",
    "prints a reply": """print('{"score": 1.0}', flush=True)""",
    "writes a reply to standard output": f"""{OS}.write(1, b'{{"score": 1.0}}\\n')""",
    "closes what it can": f"{OS}.closerange(0, 99)",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_answer_gets_nothing_leaves_nothing_and_the_next_is_scored_rightly(reward, tmp_path, attack):
    there = tmp_path / "there"
    there.write_text("1 2 3")
    there.chmod(0o666)
    tmp_path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = ATTACKS[attack].replace("FILE", str(tmp_path / "new")).replace("THERE", str(there))
        answer = code.replace("PORT", str(listener.getsockname()[1]))
        assert scores(reward, "1 2 3") == [1.0]
        before = helper_of(reward).pid
        assert scores(reward, answer, "1 2 3", "[1, 2, 3]", "[3]") == [0.0, 1.0, 0.1, 0.0]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert list(tmp_path.iterdir()) == [there]
    assert (there.read_text(), there.stat().st_mode & 0o777) == ("1 2 3", 0o666)
    assert helper_of(reward).pid == before
    assert helper_of(reward).poll() is None


def test_a_loop_ends_at_the_limit_and_is_remembered_for_its_item(monkeypatch):
    monkeypatch.setattr(confined, "ANSWER_SECONDS", 0.5)
    reward = ReasoningGymReward("spiral_matrix")
    loop = "[0 for _ in iter(int, 1)]"
    assert scores(reward, loop, "1 2 3") == [0.0, 1.0]
    asked = []
    ask = Helper.ask
    monkeypatch.setattr(Helper, "ask", lambda self, question: asked.append(question[0]) or ask(self, question))
    assert scores(reward, loop) == [0.0]
    assert asked == ["1 2 3"], "the item's own answer alone"


def test_a_loop_that_holds_off_the_alarm_ends_too(monkeypatch):
    monkeypatch.setattr(confined, "ANSWER_SECONDS", 0.1)
    reward = ReasoningGymReward("spiral_matrix")
    deaf = "[s.signal(n, s.SIG_IGN) for s in [__import__('signal')] for n in (s.SIGPROF, s.SIGXCPU)]"
    assert scores(reward, f"{deaf} + [0 for _ in iter(int, 1)]", "1 2 3") == [0.0, 1.0]


def test_an_answer_that_sleeps_is_ended(monkeypatch):
    monkeypatch.setattr(confined, "wall_seconds", lambda cpu_seconds: 4.0)
    reward = ReasoningGymReward("spiral_matrix")
    assert scores(reward, "__import__('time').sleep(1e6)", "1 2 3") == [0.0, 1.0]


@pytest.mark.parametrize("dataset", ["countdown", "simple_integration"])
def test_an_expression_of_sympy_opens_no_file(dataset, tmp_path):
    """sympy's parser passes attributes and items on to ``eval``; so far this wrote the file."""
    tmp_path.chmod(0o777)
    data = reasoning_gym.create_dataset(dataset, seed=7, size=1)
    opened = f"sqrt.__globals__['__builtins__']['open']('{tmp_path}/new', 'w')"
    assert scores(ReasoningGymReward(dataset), opened, data[0]["answer"], entry=data[0]) == [0.0, 1.0]
    assert list(tmp_path.iterdir()) == []
    data.score_answer(opened, data[0])
    assert [path.name for path in tmp_path.iterdir()] == ["new"], "the library's own scorer, in this process"


def test_what_an_answer_changes_is_changed_for_itself_only(reward):
    module = "__import__('reasoning_gym.algorithmic.spiral_matrix', fromlist=['x']).SpiralMatrixDataset"
    change = f"setattr({module}, 'score_answer', lambda *arguments: 1.0)"
    assert scores(reward, change, "nonsense", "1 2 3") == [0.0, 0.0, 1.0]


def test_the_owners_environment_is_not_there(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "1 2 3")
    reward = ReasoningGymReward("spiral_matrix")
    assert scores(reward, f"[{OS}.environ.get('MY_TOKEN', 'none')]", f"[{OS}.environ and '1 2 3']") == [0.0, 0.1]


@pytest.mark.parametrize(
    "said",
    [
        *("", "1", "[]", "{}", '{"score": 7.0}', '{"score": NaN}', '{"score": true}', '{"score": 1', "[" * 4_000),
        *('{"ended": 0}', '{"score": 1.0, "more": 1}', '{"raised": 1}', "\udcff", "1" * 4_000),
    ],
)
def test_only_a_score_is_taken_for_one(said):
    assert confined._checked(said.encode("utf-8", "surrogateescape")) is None
    assert confined._checked(b'{"score": 0.5}') == {"score": 0.5}


WITHOUT_THE_HOOK = """
import ctypes, json, os, resource, socket, sys
from chatlearn.rewards.restrict import landlock_version, leave_networks, restrict

folder = sys.argv[1]
attempts = {
    "read": lambda: open(f"{folder}/there"),
    "write": lambda: open(f"{folder}/new", "w"),
    "socket": socket.socket,
    "fork": lambda: os.fork() or os._exit(0),
    "raise": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)),
    "remove": lambda: os.remove(f"{folder}/there"),
    "folder": lambda: os.mkdir(f"{folder}/new"),
    "signal": lambda: os.kill(os.getppid(), 0),
}
version = landlock_version(ctypes.CDLL(None)) if sys.platform == "linux" else 0
leave_networks()
reader, writer = os.pipe()
if os.fork() == 0:
    restrict(writer, 5.0)
    allowed = []
    for name, attempt in attempts.items():
        try:
            attempt()
            allowed.append(name)
        except (OSError, ValueError):
            pass
    os.write(writer, json.dumps({"version": version, "allowed": allowed, "uid": os.getuid()}).encode())
    os._exit(0)
os.close(writer)
os.wait()
print(os.read(reader, 1000).decode())
"""


def test_the_system_refuses_it_where_the_hook_is_got_round(tmp_path):
    """Files, sockets and processes by limits; removing and making files, and signals, where there is Landlock.

    Where root can't become nobody, it may fork: a container that takes this right from it.
    """
    tmp_path.chmod(0o777)
    (tmp_path / "there").touch()
    command = [sys.executable, "-c", WITHOUT_THE_HOOK, str(tmp_path)]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    by_landlock = [({"remove", "folder"}, 1), ({"signal"}, 6)]
    refused_by_it = set().union(*(names for names, version in by_landlock if result["version"] >= version))
    possible = {"remove", "folder", "signal"} | ({"fork"} if result["uid"] == 0 else set())
    assert set(result["allowed"]) <= possible - refused_by_it
    assert (tmp_path / "there").exists() or not refused_by_it


# -- The helper --------------------------------------------------------------------------------------------------------


def test_a_helper_that_is_killed_is_replaced_and_costs_no_score(reward):
    assert scores(reward, "1 2 3") == [1.0]
    helper_of(reward).kill()
    assert scores(reward, "1 2 3", "[1, 2, 3]") == [1.0, 0.1]


def test_a_forked_copy_of_the_program_has_a_helper_of_its_own(reward):
    assert scores(reward, "1 2 3") == [1.0]
    before = helper_of(reward).pid
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = [scores(reward, "1 2 3", "[3]"), helper_of(reward).pid != before]
            reward._scorer._helper._end()
            os.write(writer, json.dumps(result).encode())
        finally:
            os._exit(0)
    os.close(writer)
    assert scores(reward, "[3]", "1 2 3") == [0.0, 1.0]
    os.waitpid(child, 0)
    assert json.loads(os.read(reader, 1_000)) == [[1.0, 0.0], True]
    os.close(reader)
    assert scores(reward, "1 2 3") == [1.0]
    assert helper_of(reward).pid == before


PROGRAM = """
import os, sys
from chatlearn.rewards import ReasoningGymReward
reward = ReasoningGymReward("spiral_matrix")
entry = {"question": "?", "answer": "1 2 3", "metadata": {}}
assert reward(["?"], ["1 2 3"], [entry]) == [1.0]
print(reward._scorer._helper._child.process.pid, flush=True)
if len(sys.argv) > 1:
    os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.mark.parametrize("end", [[], [str(int(signal.SIGKILL))]], ids=["at exit", "killed"])
def test_the_helper_ends_with_the_program_however_that_ends(end):
    """Its output's pipe is held by the helper too, should that live on: then ``run`` would wait for its end."""
    result = subprocess.run([sys.executable, "-c", PROGRAM, *end], capture_output=True, text=True, timeout=120)
    assert result.returncode == -int(end[0] if end else 0)
    pid = int(result.stdout)
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break


def test_a_helper_that_can_not_start_says_how_to_find_out_why(monkeypatch):
    reward = ReasoningGymReward("spiral_matrix")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DataError, match=r"does not start.*/bin/false -c \"import reasoning_gym\""):
        scores(reward, "1 2 3")
