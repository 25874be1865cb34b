"""The outer loop: what it does with an objective, how it stops, and how it resumes."""

import logging
import math
import os
import signal
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam

from dd.engine.checkpoint import Checkpoint
from dd.engine.method import Method, Skip, Synthetic
from dd.engine.synthesise import CHECKPOINT_EVERY, MAX_SKIPPED, WINDOW, Watch, synthesise
from dd.errors import Interrupted, RunError
from dd.runs.stop import Stop


@dataclass(frozen=True)
class Toy(Method):
    """Pulls noise towards zero, with momenta, draws, named terms and skips, so that resuming is no gift.

    Attributes:
        iterations: how many.
        skip: iterations that are left out.
        spoil: iteration -> (a tensor of the variables, a number that the term `size` is made of).
        happen: iteration -> something that happens while it is under way.
        calls: what was called, in order.
    """

    iterations: int = 23
    skip: frozenset[int] = frozenset()
    spoil: dict[int, Any] = field(default_factory=dict)
    happen: dict[int, Any] = field(default_factory=dict)
    calls: list[Any] = field(default_factory=list)

    def start(self, task, prepared):
        return Synthetic(
            torch.randn(8, 1, 8, 8, generator=task.generator("start")), task.targets, torch.zeros(8, 4), lr=0.1
        )

    def optimisers(self, syn):
        return [SGD([syn.images], lr=0.5, momentum=0.9), SGD([syn.lr], lr=1e-3), Adam([syn.labels], lr=0.05)]

    def loss(self, syn, task, prepared, it):
        self.calls.append(("loss", it))
        if it in self.happen:
            self.happen[it]()
        if it in self.skip:
            return Skip(9.0 + it, f"it is iteration {it}")
        weight = torch.rand(8, 1, 1, 1, generator=task.generator("weights", it))
        goal = torch.randn(8, 4, generator=task.generator("goal", it))
        size = (weight * syn.images.square()).mean() * (1 + syn.lr)
        if it in self.spoil:
            size = self.spoil[it](syn)
        return {"size": size, "labels": (syn.labels - goal).square().mean()}

    def project(self, syn, task):
        self.calls.append(("project", syn.images.detach().abs().max().item()))
        with torch.no_grad():
            syn.images.clamp_(-2, 2)


def bits(syn):
    return {name: value.clone() for name, value in syn.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class Rig:
    """One toy, its task and its checkpoint; every `run` begins as a new process would."""

    def __init__(self, task, folder):
        self.task, self.stop, self.rows = task, Stop("the same command resumes"), []
        self.checkpoint = Checkpoint(folder / "checkpoint.safetensors", "toy")
        self.syn = None

    def run(self, method, checkpoint=True, stop_after=None, crash_after=None, **watch):
        """Rows of the log of this process; the variables are in `syn`, whether or not the run came to its end."""
        self.stop, self.rows = Stop("the same command resumes"), []

        def log(it, scalars):
            self.rows.append((it, dict(scalars)))
            if it == stop_after:
                self.stop.requested = signal.SIGTERM
            if it == crash_after:
                raise MemoryError

        self.syn = method.start(self.task, None)
        watch = Watch(log=log, stop=self.stop, **watch)
        synthesise(method, self.task, None, self.syn, self.checkpoint if checkpoint else None, watch)
        return bits(self.syn)

    def saved(self):
        """Iteration, facts and variables in the checkpoint."""
        other = Toy().start(self.task, None)
        found = self.checkpoint.load(other, Toy().optimisers(other))
        return None if found is None else (*found, bits(other))


@pytest.fixture
def rig(make_task, tmp_path):
    return Rig(make_task(), tmp_path)


# --- one iteration after another -------------------------------------------------------------------------------------


def test_the_loop_is_the_one_that_is_written_by_hand(rig):
    method = Toy(skip=frozenset({4, 5}))
    found = rig.run(method)
    syn = method.start(rig.task, None)
    optimisers = Toy().optimisers(syn)
    for it in range(23):
        if it not in (4, 5):
            terms = method.loss(syn, rig.task, None, it)
            for optimiser in optimisers:
                optimiser.zero_grad()
            (terms["size"] + terms["labels"]).backward()
            for optimiser in optimisers:
                optimiser.step()
        with torch.no_grad():
            syn.images.clamp_(-2, 2)
    assert all(torch.allclose(found[name], value, rtol=1e-5, atol=1e-7) for name, value in bits(syn).items())
    assert not equal(found, bits(method.start(rig.task, None)))


def test_every_iteration_is_logged_with_its_terms(rig):
    method = Toy(skip=frozenset({4}))
    rig.run(method)
    assert [it for it, _ in rig.rows] == list(range(23))
    assert [it for name, it in method.calls if name == "loss"] == list(range(23))
    assert [name for name, _ in method.calls] == ["loss", "project"] * 23
    for it, row in rig.rows:
        if it == 4:
            assert row == {"loss": 13.0, "skipped": 1, "lr": row["lr"]}
        else:
            assert row.keys() == {"loss", "size", "labels", "skipped", "lr"}
            assert row["loss"] == row["size"] + row["labels"]
            assert row["skipped"] == 0
    rates = [row["lr"] for _, row in rig.rows]
    assert rates[3] == rates[4] != rates[5]
    assert rates[-1] == rig.syn.lr.item()


def test_a_plain_tensor_is_an_objective_without_further_terms(rig):
    class Plain(Toy):
        def loss(self, syn, task, prepared, it):
            return sum(super().loss(syn, task, prepared, it).values())

    found, rows = rig.run(Plain(), checkpoint=False), rig.rows
    named = rig.run(Toy(), checkpoint=False)
    assert all(torch.allclose(found[name], named[name], rtol=1e-4, atol=1e-6) for name in found)
    assert all(row.keys() == {"loss", "skipped", "lr"} for _, row in rows)


def test_no_iterations_leave_the_start(rig):
    assert equal(rig.run(Toy(iterations=0)), bits(Toy().start(rig.task, None)))
    assert rig.rows == []


def test_variables_without_a_learned_lr_log_none(rig):
    class Without(Toy):
        def start(self, task, prepared):
            return Synthetic(torch.ones(8, 1, 8, 8), task.targets)

        def optimisers(self, syn):
            return [SGD([syn.images], lr=0.5)]

        def loss(self, syn, task, prepared, it):
            return syn.images.square().mean()

    rig.run(Without(iterations=2), checkpoint=False)
    assert [row.keys() for _, row in rig.rows] == [{"loss", "skipped"}] * 2


# --- stopping and resuming -------------------------------------------------------------------------------------------


@pytest.fixture
def whole(rig):
    """Result and log of a run in one go."""
    result = rig.run(Toy(skip=frozenset({3, 11})), checkpoint=False)
    return result, rig.rows


@pytest.mark.parametrize("k", range(23))
def test_a_run_stopped_after_any_iteration_ends_in_the_same_bits(rig, whole, k, caplog):
    caplog.set_level(logging.INFO, logger="dd.engine")
    method = Toy(skip=frozenset({3, 11}))
    with pytest.raises(Interrupted) as stopped:
        rig.run(method, stop_after=k)
    first, at_stop = rig.rows, bits(rig.syn)
    assert stopped.value.exit_code == 75
    assert str(stopped.value) == "stopped by SIGTERM; the same command resumes"
    it, _, saved = rig.saved()
    assert it == rig.checkpoint.iteration() == k + 1
    assert equal(saved, at_stop)
    assert [row for row, _ in first] == list(range(k + 1))
    assert not caplog.records
    result = rig.run(Toy(skip=frozenset({3, 11})))
    assert equal(result, whole[0])
    assert first + rig.rows == whole[1]
    assert f"synthesis resumes at iteration {k + 1} of 23" in caplog.text


@pytest.mark.parametrize("k", [0, 8, 9, 10, 19, 22])
def test_a_run_that_was_killed_goes_on_from_the_last_tenth_iteration(rig, whole, k):
    method = Toy(skip=frozenset({3, 11}))
    with pytest.raises(MemoryError):
        rig.run(method, crash_after=k)
    last = k - k % CHECKPOINT_EVERY
    assert rig.checkpoint.iteration() == last
    assert equal(rig.run(method), whole[0])
    assert rig.rows == whole[1][last:]


def test_checkpoints_that_take_long_are_saved_less_often(rig, whole, monkeypatch):
    """A second in all is free, then a twentieth of the time: two saves of a minute are 20 minutes apart."""
    clock, saved = [0.0], []
    monkeypatch.setattr("dd.engine.synthesise.time.perf_counter", lambda: clock[0])
    real = rig.checkpoint.save

    def save(it, *rest):
        clock[0] += 60
        saved.append(it)
        real(it, *rest)

    monkeypatch.setattr(Checkpoint, "save", lambda self, *rest: save(*rest))
    method = Toy(iterations=400, skip=frozenset())
    monkeypatch.setattr(Toy, "project", lambda *_: clock.__setitem__(0, clock[0] + 10))
    rig.run(method)
    assert saved[0] == CHECKPOINT_EVERY
    assert len(saved) == 4
    assert {b - a for a, b in pairwise(saved)} <= {110, 120}


def test_a_run_stopped_again_and_again_ends_in_the_same_bits(rig, whole):
    for k in range(23):
        with pytest.raises(Interrupted):
            rig.run(Toy(skip=frozenset({3, 11})), stop_after=k)
        assert [it for it, _ in rig.rows] == [k]
    assert equal(rig.run(Toy(skip=frozenset({3, 11}))), whole[0])
    assert rig.rows == []


def test_without_a_checkpoint_a_run_begins_at_the_beginning(rig, whole):
    with pytest.raises(Interrupted):
        rig.run(Toy(), checkpoint=False, stop_after=5)
    assert rig.saved() is None
    rig.run(Toy(skip=frozenset({3, 11})), checkpoint=False)
    assert rig.rows == whole[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
@pytest.mark.parametrize("at", [0, 6, 22])
def test_a_signal_waits_for_the_end_of_the_iteration(rig, whole, number, code, at):
    method = Toy(skip=frozenset({3, 11}), happen={at: lambda: os.kill(os.getpid(), number)})
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def run():
        syn = method.start(rig.task, None)
        stop = Stop("go on")
        with stop.watching():
            synthesise(method, rig.task, None, syn, rig.checkpoint, Watch(stop=stop))

    with pytest.raises(Interrupted, match=f"stopped by {number.name}; go on") as stopped:
        run()
    assert stopped.value.exit_code == code
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert rig.checkpoint.iteration() == at + 1
    assert equal(rig.run(Toy(skip=frozenset({3, 11}))), whole[0])


def test_a_second_signal_does_not_wait(rig):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("still here")

    stop, method = Stop(""), Toy(happen={12: twice})
    with stop.watching(), pytest.raises(Interrupted):
        synthesise(method, rig.task, None, method.start(rig.task, None), rig.checkpoint, Watch(stop=stop))
    assert rig.checkpoint.iteration() == 10  # what there was


# --- probes ----------------------------------------------------------------------------------------------------------


def test_probes_see_the_variables_before_their_iteration_and_change_nothing(rig, whole):
    states, seen = {}, []

    def keep(it):
        states[it] = rig.syn.images.detach().clone()

    method = Toy(skip=frozenset({3, 11}), happen={it: lambda it=it: keep(it) for it in range(23)})

    def probe(syn):
        seen.append(syn.images.detach().clone())
        torch.rand(3)  # whatever it draws
        return 8.0 + len(seen), 12.0 + len(seen)

    result = rig.run(method, checkpoint=False, probe=probe, probe_at=frozenset({0, 7, 11, 23}))
    assert equal(result, whole[0])
    assert {it: row["probe"] for it, row in rig.rows if "probe" in row} == {0: 11.0, 7: 12.0, 11: 13.0, 23: 14.0}
    for image, it in zip(seen, (0, 7, 11), strict=False):
        assert torch.equal(image, states[it])
    assert torch.equal(seen[3], result["images"])
    # the last row is the probe's alone
    assert rig.rows[-1] == (23, {"probe": 14.0, "probe_std": pytest.approx(8**0.5)})
    assert [{k: v for k, v in row.items() if not k.startswith("probe")} for _, row in rig.rows[:-1]] == [
        r for _, r in whole[1]
    ]


def test_a_run_stopped_during_its_last_probe_does_not_go_on(rig, whole):
    # Ctrl-C while the last student trains must end the program, and the iterations are not lost
    probes = []

    def probe(syn):
        probes.append(len(rig.rows))
        if len(probes) == 1:
            rig.stop.requested = signal.SIGINT
        return (50.0,)

    method = Toy(skip=frozenset({3, 11}))
    with pytest.raises(Interrupted):
        rig.run(method, probe=probe, probe_at=frozenset({23}))
    assert rig.checkpoint.iteration() == 23
    assert equal(rig.run(method, probe=probe, probe_at=frozenset({23})), whole[0])
    assert rig.rows == [(23, {"probe": 50.0})]


def test_no_probe_no_column(rig):
    rig.run(Toy(), probe_at=frozenset({0, 7, 23}))
    assert not any("probe" in row for _, row in rig.rows)
    assert len(rig.rows) == 23


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_window_of_skips_stops_the_run(rig):
    assert (WINDOW, MAX_SKIPPED) == (100, 0.95)
    method = Toy(iterations=400, skip=frozenset(range(7, 300)))
    with pytest.raises(RunError) as error:
        rig.run(method)
    text = str(error.value)
    assert "95 of the last 100 iterations were skipped (it is iteration 101): nothing is learned" in text
    assert "Lower lr_img or lr_lr" in text
    assert [it for name, it in method.calls if name == "loss"][-1] == 101
    it, facts, saved = rig.saved()
    assert (it, facts) == (101, {"skips": list(range(7, 101))})
    assert equal(saved, rig.run(Toy(iterations=7), checkpoint=False))
    # the same command says the same thing again
    with pytest.raises(RunError) as again:
        rig.run(Toy(iterations=400, skip=frozenset(range(7, 300))))
    assert str(again.value) == text
    assert [it for it, _ in rig.rows] == []


def test_six_updates_in_a_hundred_do_not(rig):
    method = Toy(iterations=330, skip=frozenset(it for it in range(330) if it % 100 >= 6))
    rig.run(method)
    assert sum(row["skipped"] for _, row in rig.rows) == 3 * 94 + 24


@pytest.mark.parametrize(("iterations", "skipped"), [(1, 1), (20, 19)])
def test_in_a_short_run_all_iterations_are_the_window(rig, iterations, skipped):
    with pytest.raises(RunError, match=f"{skipped} of the last {iterations} iterations"):
        rig.run(Toy(iterations=iterations, skip=frozenset(range(iterations - skipped, iterations))))
    rig.run(Toy(iterations=20, skip=frozenset(range(2, 20))), checkpoint=False)


@pytest.mark.parametrize("k", [20, 70, 99])
def test_skips_are_counted_across_an_interruption(rig, k):
    skip = frozenset(range(7, 300))
    with pytest.raises(Interrupted):
        rig.run(Toy(iterations=400, skip=skip), stop_after=k)
    method = Toy(iterations=400, skip=skip)
    with pytest.raises(RunError, match=r"95 of .*iteration 101"):
        rig.run(method)
    assert [it for name, it in method.calls if name == "loss"] == list(range(k + 1, 102))


# --- a learned lr below zero -----------------------------------------------------------------------------------------


def falling(*at):
    """Iterations whose objective falls with lr, by so much that lr passes through zero."""
    return Toy(spoil=dict.fromkeys(at, lambda syn: syn.images.square().mean() + 1e6 * syn.lr))


def test_a_learned_lr_is_kept_above_zero_and_that_is_said_once(rig, caplog):
    with caplog.at_level(logging.WARNING):
        end = rig.run(falling(5, 13))
    rates = [row["lr"] for _, row in rig.rows]
    assert rates[4] > 0.09
    assert rates[5] == rates[13] == min(rates) == pytest.approx(0.1 / 100)
    assert len(caplog.messages) == 1
    assert "learned lr fell to -" in caplog.messages[0]
    assert "at iteration 5: it is kept at 0.001, a 100th of its first value; lower lr_lr" in caplog.messages[0]
    assert float(end["lr"]) > 0


def test_it_is_kept_there_at_the_last_iteration_and_across_an_interruption(rig):
    whole = rig.run(falling(5, 22), checkpoint=False)
    assert float(whole["lr"]) == pytest.approx(0.1 / 100)
    for k in (4, 5, 21):
        with pytest.raises(Interrupted):
            rig.run(falling(5, 22), stop_after=k)
    assert equal(rig.run(falling(5, 22)), whole)


def test_the_floor_follows_an_lr_that_a_run_begins_from():
    syn = Synthetic(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.long), lr=0.1)
    syn.take(torch.ones(1, 1, 2, 2), lr=0.0005)  # a set's own
    assert syn.lr.item() == pytest.approx(0.0005)
    assert syn.lr_floor == pytest.approx(0.0005 / 100)
    syn.take(torch.ones(1, 1, 2, 2), lr=-3.0)
    assert syn.lr.item() == pytest.approx(0.0005 / 100)
    assert Synthetic(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.long)).lr_floor == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 13])
def test_a_term_that_is_not_finite_is_named_and_the_good_state_kept(rig, value, at):
    method = Toy(spoil={at: lambda syn: syn.images.mean() * value})
    with pytest.raises(RunError) as error:
        rig.run(method)
    said = str(error.value)
    assert said.startswith("the term 'size' of the objective is ")
    assert said.split(" is ")[1].split(" at ")[0] in ("nan", "inf", "-inf")
    assert f"at iteration {at}; the last good state is kept" in said
    assert "smaller lr_img or lr_lr" in said
    it, facts, saved = rig.saved()
    assert (it, facts) == (at, {"skips": []})
    good = rig.run(Toy(iterations=at), checkpoint=False)
    assert equal(saved, good)


def test_a_single_objective_that_is_not_finite_is_called_the_loss(rig):
    class Plain(Toy):
        def loss(self, syn, task, prepared, it):
            return syn.images.mean() * (math.nan if it == 2 else 1)

    with pytest.raises(RunError, match=r"^the term 'loss' of the objective is nan at iteration 2"):
        rig.run(Plain())


@pytest.mark.parametrize("at", [0, 13])
def test_a_gradient_that_is_not_finite_is_named_and_nothing_moves(rig, at):
    def rooted(syn):
        return (syn.images * 0).square().sum().sqrt() + syn.images.square().mean()  # value finite, slope 0/0

    with pytest.raises(RunError) as error:
        rig.run(Toy(spoil={at: rooted}))
    assert str(error.value).startswith(f"the gradient of 'images' is not finite at iteration {at}; the last good")
    good = rig.run(Toy(iterations=at), checkpoint=False)
    it, _, saved = rig.saved()
    assert it == at
    assert equal(saved, good)  # neither the images nor the variables whose gradients were fine


def test_a_step_that_overshoots_into_infinity_does_not_overwrite_the_good_state(rig):
    class Unclamped(Toy):
        def project(self, syn, task):
            pass

    def steep(syn):
        return 3e38 * (syn.images - syn.images.detach()).sum()  # zero, with the largest gradient that float32 has

    # the second such step leaves the range of float32 by its momentum; the objective says so an iteration later
    method = Unclamped(spoil={13: steep, 14: steep})
    with pytest.raises(RunError, match="at iteration 15"):
        rig.run(method)
    it, _, saved = rig.saved()
    assert it == 10
    assert all(value.isfinite().all() for value in saved.values())


def test_a_last_step_into_infinity_gives_no_set(rig):
    class Unclamped(Toy):
        def project(self, syn, task):
            pass

    def steep(syn):
        return 3e38 * (syn.images - syn.images.detach()).sum()

    with pytest.raises(RunError, match="not finite after the last update at iteration 22; the last good state"):
        rig.run(Unclamped(spoil={21: steep, 22: steep}))
    it, _, saved = rig.saved()
    assert it == 20
    assert all(value.isfinite().all() for value in saved.values())


def test_an_error_of_the_method_leaves_the_last_checkpoint(rig, whole):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rig.run(Toy(skip=frozenset({3, 11}), happen={17: fail}))
    assert rig.checkpoint.iteration() == 10
    assert equal(rig.run(Toy(skip=frozenset({3, 11}))), whole[0])


def test_a_signal_after_an_error_is_not_held_back(rig):
    stop, method = Stop(""), Toy(spoil={3: lambda syn: syn.images.mean() * math.nan})
    with stop.watching():
        with pytest.raises(RunError):
            synthesise(method, rig.task, None, method.start(rig.task, None), None, Watch(stop=stop))
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


@dataclass(frozen=True)
class Scheduled(Toy):
    """Learning rates fall; what they were is kept.

    Attributes:
        rates: of the images' optimiser, iteration by iteration.
        made: its optimisers.
    """

    rates: list[float] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)

    def rate(self, it):
        return 1 / (1 + it)

    def optimisers(self, syn):
        self.made.append(super().optimisers(syn))
        return self.made[-1]

    def project(self, syn, task):
        super().project(syn, task)
        self.rates.append(self.made[-1][0].param_groups[0]["lr"])


def test_rates_follow_the_methods_schedule(rig):
    method = Scheduled()
    scheduled = rig.run(method, checkpoint=False)
    assert method.rates == [0.5 / (1 + it) for it in range(23)]
    assert not equal(scheduled, rig.run(Toy(), checkpoint=False))


def test_an_interruption_does_not_compound_the_schedule(rig):
    expected = rig.run(Scheduled(), checkpoint=False)
    with pytest.raises(Interrupted):
        rig.run(Scheduled(), stop_after=4)
    method = Scheduled()
    assert equal(rig.run(method), expected)
    assert method.rates == [0.5 / (1 + it) for it in range(5, 23)]
