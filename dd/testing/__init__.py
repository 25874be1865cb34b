"""The conformance suite: what every method is put through, ours or a plug-in's.

From a shell, for methods by name or by file; without `--method`, for all that are registered:

    python -m dd.testing --method my_idea --method path/to/other.py
    pytest --pyargs dd.testing --method my_idea

From a test of your own:

    from dd.testing import conformance

    def test_conforms():
        conformance.check(MyIdea)
"""
