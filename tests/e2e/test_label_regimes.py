"""Label regimes from the command line: one report, the same set under other labels, and what is refused."""

import pytest

ASKED = ("eval.labels=hard,soft", "eval.suite=smoke", "eval.coreset=random")


@pytest.fixture(scope="module")
def scored(tmp_path_factory, pictures):
    """Where a set was distilled and scored, and its report."""
    from .conftest import ALIKE, Place

    place = Place(tmp_path_factory.mktemp("regimes"))
    words = ("method=random", pictures, *ALIKE, "ipc=2", "eval.students=1", "eval.full=false")
    ended = place.dd("run", *words, *ASKED, "--json")
    assert ended.code == 0, ended.err
    return place, words, ended.report


def test_a_run_scores_its_set_under_hard_and_soft_labels(scored):
    place, words, report = scored
    hard, soft = report["regimes"]
    assert (hard["regime"], soft["regime"]) == ("hard", "soft")
    for one in (hard, soft):
        own = {"hard": "bytes", "soft": "mixed"}[one["regime"]]
        assert set(one["rows"]) == {"accuracy", "control", "coreset", "start", "noise", own}
        assert one["coreset"] == "random"
        assert one["missing"] == {"full": "eval.full=false"}
    assert hard["rows"]["accuracy"]["values"] == report["accuracy"]["values"]  # its labels are hard, by one protocol
    assert soft["labels"]["names"] == ["convnet:depth=1:width=4:norm=instance:pooling=avg:activation=relu"]
    assert soft["spent"] == {"steps": 150, "images": 1500, "queries": 10}
    again = place.dd("run", *words, *ASKED)
    assert again.code == 0
    assert "verdict    the images" in again.out
    assert "made student" not in again.err  # nothing is trained again
    other = place.dd("run", *words, "--json")
    assert other.report["regimes"] == []
    assert other.report["accuracy"] == report["accuracy"]


def test_an_existing_set_is_scored_under_them_on_request(scored):
    place, _, report = scored
    file = sorted(place.runs.rglob("set.safetensors"))[0]
    plain = place.dd("eval", str(file), "--json").report
    assert plain["regimes"] == []
    again = place.dd("eval", str(file), *ASKED, "--json")
    assert again.code == 0, again.err
    assert [one["rows"] for one in again.report["regimes"]] == [one["rows"] for one in report["regimes"]]
    assert "made student" not in again.err


def test_a_bad_teacher_is_refused_before_students_are_trained(scored, tmp_path):
    place, _, _ = scored
    file = sorted(place.runs.rglob("set.safetensors"))[0]
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(b"no checkpoint")
    asked = ["eval.labels=soft", f"eval.teachers={teacher}@convnet", "eval.students=3", "force=true"]
    ended = place.dd("eval", str(file), *asked)
    assert ended.code == 2
    assert "teacher.pt" in ended.err.splitlines()[-1]
    assert "made student" not in ended.err


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("eval.labels=sotf", "expected a list of 'hard' or 'soft' or 'views'"),
        ("eval.suite=quik", "unknown eval.suite 'quik'; did you mean 'quick'"),
        ("eval.coreset=dm", "eval.coreset=dm is no selection method"),
        ("eval.coreset=rnadom", "'random'"),
        ("eval.teachers=no/such.pt@convnet", "no/such.pt"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(scored, word, why):
    place, words, _ = scored
    ended = place.dd("run", *words, *ASKED, word)
    assert ended.code == 2
    assert why in ended.err.splitlines()[-1]
