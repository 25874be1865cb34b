"""Words of a command line: TOML, Python and JSON spellings, and every form a sweep macro writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dd.errors import UsageError
from dd.recipes import parse_overrides, parse_value

SPELLINGS = [
    ("true", True),
    ("True", True),
    ("false", False),
    ("None", None),
    ("null", None),
    ("5", 5),
    ("-1", -1),
    ("+3", 3),
    ("1_000", 1000),
    ("0x10", 16),
    ("1e-05", 1e-05),
    ("1e-5", 1e-05),
    (".5", 0.5),
    ("5.", 5.0),
    ("[1, 2]", [1, 2]),
    ("(1, 2)", [1, 2]),
    ("[True, None]", [True, None]),
    ("[true, null]", [True, None]),
    ("{'a': 1}", {"a": 1}),
    ("{a = 1}", {"a": 1}),
    ('{"a": null}', {"a": None}),
    ("'x y'", "x y"),
    ('"x y"', "x y"),
    ("  5 ", 5),
    ("two words", "two words"),
    ("", ""),
    ("none", "none"),
    ("2024-01-01", "2024-01-01"),
    ("010", "010"),
    ("0,1,2", "0,1,2"),
    ("1j", "1j"),
    ("b'x'", "b'x'"),
    ("folder:/data/a#b", "folder:/data/a#b"),
    ("1 # one", "1 # one"),
    ("1\nb = 2", "1\nb = 2"),
    ("C:\\data", "C:\\data"),
    ("a=b", "a=b"),
]


@pytest.mark.parametrize(("text", "value"), SPELLINGS)
def test_spellings(text, value):
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", categories=("L",)), min_size=1).filter(lambda t: t not in ("inf", "nan")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(plain)
def test_whatever_python_prints_is_read_back(value):
    assert parse_value(str(value)) == parse_value(value if isinstance(value, str) else repr(value))
    if not isinstance(value, str):
        assert parse_value(str(value)) == value


@given(st.text())
def test_any_text_is_some_value(text):
    parse_value(text)


@pytest.mark.parametrize(
    "words",
    [
        ["lr_img=1e-05", "experts.count=3", "augment=False", "note=two words"],
        ["--lr_img=1e-05", "--experts.count=3", "--augment=False", "--note=two words"],
        ["--lr_img", "1e-05", "--experts.count", "3", "--augment", "False", "--note", "two words"],
        ["+lr_img=1e-05", "+experts.count=3", "+augment=False", "+note=two words"],
        ["++lr_img=1e-05", "++experts.count=3", "++augment=False", "++note=two words"],
        ['{"lr_img": 1e-05, "experts.count": 3, "augment": false, "note": "two words"}'],
    ],
    ids=["bare", "args", "no_equals", "append_hydra", "override_hydra", "json"],
)
def test_every_form_a_sweep_writes(words):
    assert parse_overrides(words) == {"lr_img": 1e-05, "experts.count": 3, "augment": False, "note": "two words"}


def test_flags_negative_numbers_and_repeats():
    assert parse_overrides(["--force", "--seed", "-1", "--augment", "ipc=1"]) == {
        "force": True,
        "seed": -1,
        "augment": True,
        "ipc": 1,
    }
    assert parse_overrides(["ipc=1", "ipc=2"]) == {"ipc": 2}
    assert parse_overrides(["lr-img=3"]) == {"lr_img": 3}
    assert parse_overrides(["init=a=b.safetensors"]) == {"init": "a=b.safetensors"}


@pytest.mark.parametrize("words", [["_wandb={'a': 1}"], ["--_wandb={}"], ["--_wandb", "{}"]])
def test_the_key_that_wandb_adds_is_dropped(words):
    assert parse_overrides([*words, "ipc=1"]) == {"ipc": 1}


def test_all_bad_words_are_named_at_once():
    with pytest.raises(UsageError) as caught:
        parse_overrides(["datm", "ipc=1", "~lr_img", "{bad", "=3"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for word, line in zip(("datm", "~lr_img", "{bad", "=3"), lines, strict=True):
        assert repr(word) in line
