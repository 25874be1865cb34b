"""A data set that is nowhere, on a machine without a network."""

import time


def test_one_line_says_where_it_looked_and_what_helps(place):
    nobody = "http://127.0.0.1:9"  # the port that discards; nobody listens
    offline = {name: nobody for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    began = time.monotonic()
    ended = place.dd(
        "run", "method=mtt", "dataset=cifar100", "ipc=1", HOME=str(place.path / "me"), no_proxy="", **offline
    )
    assert time.monotonic() - began < 60
    assert ended.code == 2
    assert ended.out == ""
    (line,) = [line for line in ended.err.splitlines() if line.startswith("dd: ")]
    for words in (
        "cifar100 was not found",
        "looked in ~/.cache/huggingface/hub, ./data, ~/data",
        "could not be downloaded",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "put it into $DD_DATA as cifar100/",
        "dataset=fashion-mini needs no download",
    ):
        assert words in line
    assert "Traceback" not in ended.err
    assert not place.runs.exists()
    assert place.half_written() == []
